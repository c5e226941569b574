#include "ops/cli/local_cluster.h"

#include <algorithm>
#include <poll.h>
#include <set>

#include "common/clock.h"
#include "common/file.h"
#include "ops/cli/helpers.h"
#include "ops/cli/run_folder.h"

namespace tessera::cli {
namespace {

constexpr Millis kAddressDeadlineMs = 30000, kDoomedGraceMs = 10000, kLeaveMs = 5000;
constexpr size_t kLastLines = 15;

// A restart does not mend these: wrong usage, data, refusals, configuration, device, versions, fences.
bool is_final(int exit_code) {
  static const std::set<int> codes{exit_codes::kDone, exit_codes::kUsage, exit_codes::kDataCorrupt, exit_codes::kDrained, exit_codes::kRefused,
                                   exit_codes::kConfig, exit_codes::kNonFinite, exit_codes::kDeviceFaulty, exit_codes::kVersionMismatch, exit_codes::kFenced};
  return codes.contains(exit_code);
}

std::vector<std::string> coordinator_command(const std::string& path, const ClusterOptions& options) {
  std::vector<std::string> command{path, options.config_path, "--run-dir", options.run_dir, "--set", "operation.run_id=" + options.run_id};
  for (const std::string& item : options.overrides) command.insert(command.end(), {"--set", item});
  if (options.resume) command.push_back("--resume");
  if (!options.from.empty()) command.insert(command.end(), {"--from", options.from});
  return command;
}

}  // namespace

Status LocalCluster::add(std::string name, std::vector<std::string> command) {
  Member member;
  member.name = std::move(name);
  member.options.command = std::move(command);
  member.options.output_file = run_dir_ + "/logs/" + member.name + ".out";
  member.options.own_session = true;
  TESSERA_ASSIGN(member.child, Child::spawn(member.options));
  member.started_at = monotonic_ms();
  members_.push_back(std::move(member));
  return {};
}

Result<std::unique_ptr<LocalCluster>> LocalCluster::start(const ClusterOptions& options, SignalWatch& signals) {
  TESSERA_TRY(make_folders(options.run_dir + "/logs"));
  std::unique_ptr<LocalCluster> cluster(new LocalCluster(signals, options.run_dir));
  TESSERA_ASSIGN(const std::string coordinator, helper_path("tessera-coordinator"));
  TESSERA_ASSIGN(const std::string loader, helper_path("tessera-loader"));
  TESSERA_ASSIGN(const std::string worker, helper_path("tessera-worker"));
  const std::string logs = options.run_dir + "/logs", address = options.run_dir + "/address.json";
  TESSERA_TRY(cluster->add("coordinator", coordinator_command(coordinator, options)));
  TESSERA_TRY(cluster->wait_for_address());
  for (int64_t i = 0; i < options.loaders; ++i) {
    const std::string name = "loader-" + std::to_string(i);
    TESSERA_TRY(cluster->add(name, {loader, "--coordinator", address, "--name", name, "--threads", std::to_string(options.loader_threads), "--log-dir", logs}));
  }
  std::vector<std::string> command{worker, "--coordinator", address, "--log-dir", logs};
  if (options.device == "cuda") {
    std::string devices;
    for (int64_t i = 0; i < options.workers; ++i) devices += (i ? ",cuda:" : "cuda:") + std::to_string(i);
    command.insert(command.end(), {"--devices", devices});
  } else {
    command.insert(command.end(), {"--workers", std::to_string(options.workers)});
  }
  TESSERA_TRY(cluster->add("worker", command));
  return cluster;
}

Status LocalCluster::wait_for_address() {
  Member& coordinator = members_.front();
  const int before = signals_.count();
  const Millis deadline = monotonic_ms() + kAddressDeadlineMs;
  for (;;) {
    if (const auto address = read_address(run_dir_); address && address->pid == coordinator.child.pid()) return {};
    ChildExit exit;
    if (coordinator.child.poll_exit(&exit))
      return fail(ErrorCode::kInternal, "the coordinator did not start: " + exit.cause + "; its last lines:\n" + last_lines(coordinator.options.output_file, kLastLines),
                  exit.exit_code > 0 ? exit.exit_code : exit_codes::kBug);
    if (signals_.count() > before) return fail(ErrorCode::kRetry, "interrupted before the run began", exit_codes::kDrained);
    if (monotonic_ms() > deadline)
      return fail(ErrorCode::kUnavailable, "the coordinator wrote no address within " + std::to_string(kAddressDeadlineMs / 1000) + " s; its log is " + coordinator.options.output_file);
    pollfd wait[2] = {{coordinator.child.descriptor(), POLLIN, 0}, {signals_.descriptor(), POLLIN, 0}};
    poll(wait, 2, 20);
  }
}

LocalCluster::~LocalCluster() {
  if (!ended_ && !members_.empty()) kill_all();
}

void LocalCluster::wait(int timeout_ms) {
  std::vector<pollfd> descriptors{{signals_.descriptor(), POLLIN, 0}};
  for (const Member& member : members_)
    if (member.child.running()) descriptors.push_back({member.child.descriptor(), POLLIN, 0});
  poll(descriptors.data(), descriptors.size(), timeout_ms);
  ChildExit exit;
  if (members_.front().child.poll_exit(&exit)) return coordinator_ended(exit);
  for (size_t i = 1; i < members_.size(); ++i)
    if (members_[i].child.poll_exit(&exit)) member_ended(members_[i], exit);
  if (doomed_until_ >= 0 && monotonic_ms() > doomed_until_) {
    coordinator_ended(members_.front().child.stop(kLeaveMs));
    end_ = {doomed_code_, doomed_reason_};
  }
}

void LocalCluster::member_ended(Member& member, const ChildExit& exit) {
  const std::string sentence = member.name + " ended: " + exit.cause;
  const std::string tail = last_lines(member.options.output_file, kLastLines);
  if (exit.exit_code == exit_codes::kDone || exit.exit_code == exit_codes::kDrained) return;  // told to by the coordinator, which ends soon
  if (!is_final(exit.exit_code) && restart(member, sentence)) return;
  doomed_code_ = exit.exit_code > 0 ? exit.exit_code : exit_codes::kBug;
  doomed_reason_ = sentence + (tail.empty() ? "" : "; its last lines:\n" + tail);
  doomed_until_ = monotonic_ms() + kDoomedGraceMs;
  news_.push_back(sentence + "; not started again");
}

bool LocalCluster::restart(Member& member, const std::string& sentence) {
  if (monotonic_ms() - member.started_at > kSteadyMs) member.restarts = 0;
  if (member.restarts >= kRestarts) return false;
  ++member.restarts;
  member.started_at = monotonic_ms();
  auto child = Child::spawn(member.options);
  if (!child) return false;
  member.child = std::move(*child);
  news_.push_back(sentence + "; started again (" + std::to_string(member.restarts) + " of at most " + std::to_string(kRestarts) + " times in a row)");
  return true;
}

void LocalCluster::coordinator_ended(const ChildExit& exit) {
  Member& coordinator = members_.front();
  const bool unexpected = exit.exit_code < 0 || exit.exit_code == exit_codes::kBug;  // what it reports itself, a restart does not mend
  if (unexpected && doomed_until_ < 0 && !asked_to_stop_) {
    std::vector<std::string>& command = coordinator.options.command;
    const auto drop = [&](const std::string& flag, int words) {
      if (const auto at = std::find(command.begin(), command.end(), flag); at != command.end()) command.erase(at, at + words);
    };
    drop("--from", 2), drop("--resume", 1);
    command.push_back("--resume");
    if (restart(coordinator, "the coordinator ended: " + exit.cause + "; training goes on")) return;
  }
  ended_ = true;
  for (size_t i = 1; i < members_.size(); ++i) members_[i].child.send(SIGTERM);
  for (size_t i = 1; i < members_.size(); ++i)
    if (members_[i].child.running()) members_[i].child.stop(kLeaveMs);
  end_.exit_code = exit.exit_code >= 0 ? exit.exit_code : exit_codes::kBug;
  if (exit.exit_code == exit_codes::kDone || exit.exit_code == exit_codes::kDrained) return;
  end_.reason = "the coordinator ended: " + exit.cause + "; its last lines:\n" + last_lines(members_.front().options.output_file, kLastLines);
  if (!doomed_reason_.empty()) end_.reason += "\n" + doomed_reason_;
}

std::vector<std::string> LocalCluster::take_news() { return std::exchange(news_, {}); }

void LocalCluster::ask_to_stop() {
  asked_to_stop_ = true;
  members_.front().child.send(SIGTERM);
}

void LocalCluster::kill_all() {
  for (const Member& member : members_) member.child.send(SIGKILL);
  for (Member& member : members_)
    if (member.child.running()) member.child.stop(0);
  ended_ = true;
}

}  // namespace tessera::cli
