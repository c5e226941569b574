#include "common/process.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/process_usage.h"

extern char** environ;

namespace tessera {
namespace {

// oom_kill of the own cgroup: rises when the kernel killed somebody in it for memory.
int64_t oom_kills() {
  std::ifstream self("/proc/self/cgroup");
  std::string line, path = "/sys/fs/cgroup/memory.events";
  while (std::getline(self, line))
    if (line.starts_with("0::")) path = "/sys/fs/cgroup" + line.substr(3) + "/memory.events";
  std::ifstream events(path);
  std::string key;
  int64_t value = 0;
  while (events >> key >> value)
    if (key == "oom_kill") return value;
  return 0;
}

int pidfd_open(pid_t pid) { return int(syscall(SYS_pidfd_open, pid, 0)); }

std::vector<std::string> child_environment(const SpawnOptions& options) {
  std::map<std::string, std::string> values;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    const size_t equal = text.find('=');
    bool cleared = false;
    for (const auto& prefix : options.clear_env_prefixes) cleared = cleared || text.starts_with(prefix);
    if (equal != std::string::npos && !cleared) values[text.substr(0, equal)] = text.substr(equal + 1);
  }
  for (const auto& [name, value] : options.set_env) values[name] = value;
  std::vector<std::string> out;
  for (const auto& [name, value] : values) out.push_back(name + "=" + value);
  return out;
}

std::vector<char*> pointers(std::vector<std::string>& list) {
  std::vector<char*> out;
  for (auto& item : list) out.push_back(item.data());
  out.push_back(nullptr);
  return out;
}

}  // namespace

std::string describe_exit(int code) {
  static const std::map<int, const char*> names{{0, "done"}, {64, "wrong usage"}, {65, "data or checkpoint corrupt"}, {69, "coordinator not reachable"}, {70, "internal error"}, {74, "I/O error"},
                                                {75, "drained after a checkpoint"}, {77, "refused"}, {78, "configuration"}, {80, "non-finite loss"}, {81, "too few workers"}, {82, "faulty device"},
                                                {84, "versions do not match"}, {85, "fenced by a newer coordinator"}, {127, "program not found"}};
  const auto it = names.find(code);
  return "exit code " + std::to_string(code) + (it == names.end() ? "" : std::string(" (") + it->second + ")");
}

bool killed_from_outside(int signal, const std::string& cause) { return signal == SIGKILL && cause.find("out of memory") == std::string::npos; }

Result<Child> Child::spawn(const SpawnOptions& options) {
  if (options.command.empty()) return fail(ErrorCode::kInternal, "cannot start a process: the command is empty");
  std::vector<std::string> arguments = options.command, environment = child_environment(options);
  std::vector<char*> argv = pointers(arguments), envp = pointers(environment);
  int log = -1;
  if (!options.output_file.empty()) {
    log = ::open(options.output_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log < 0) return fail(ErrorCode::kIo, "cannot write " + options.output_file + ": " + std::strerror(errno));
  }
  int report[2];
  if (::pipe2(report, O_CLOEXEC) != 0) return fail(ErrorCode::kInternal, std::string("cannot start a process: ") + std::strerror(errno));
  int input[2] = {-1, -1};
  if (options.pipe_input && ::pipe2(input, O_CLOEXEC) != 0) return fail(ErrorCode::kInternal, std::string("cannot start a process: ") + std::strerror(errno));
  Child child;
  child.input_ = input[1];
  child.oom_kills_before_ = oom_kills();
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    std::signal(SIGPIPE, SIG_DFL);
    if (options.die_with_parent) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) _exit(125);  // it died before the line above
    }
    if (options.own_session) ::setsid();
    if (log >= 0) ::dup2(log, 1), ::dup2(log, 2);
    const int in = input[0] >= 0 ? input[0] : ::open("/dev/null", O_RDONLY);
    if (in >= 0) ::dup2(in, 0);
    ::execve(argv[0], argv.data(), envp.data());
    const int error = errno;
    [[maybe_unused]] const ssize_t put = ::write(report[1], &error, sizeof error);
    _exit(127);
  }
  if (log >= 0) ::close(log);
  ::close(report[1]);
  if (input[0] >= 0) ::close(input[0]);
  int error = 0;
  const bool failed = pid < 0 || ::read(report[0], &error, sizeof error) == sizeof error;
  ::close(report[0]);
  if (failed) {
    if (pid > 0) ::waitpid(pid, nullptr, 0);
    return fail(ErrorCode::kInternal, "cannot start " + options.command[0] + ": " + std::strerror(pid < 0 ? errno : error));
  }
  child.pid_ = pid;
  child.pidfd_ = pidfd_open(pid);
  return child;
}

Child::~Child() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  if (pidfd_ >= 0) ::close(pidfd_);
  close_input();
}
Child::Child(Child&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), pidfd_(std::exchange(other.pidfd_, -1)), input_(std::exchange(other.input_, -1)), oom_kills_before_(other.oom_kills_before_) {}
Child& Child::operator=(Child&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(pidfd_, other.pidfd_);
  std::swap(input_, other.input_);
  oom_kills_before_ = other.oom_kills_before_;
  return *this;
}

void Child::send(int signal) const {
  if (pid_ > 0) ::kill(pid_, signal);
}

bool Child::say(const std::string& text) const {
  for (size_t sent = 0; sent < text.size();) {
    const ssize_t put = input_ >= 0 ? ::write(input_, text.data() + sent, text.size() - sent) : -1;
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    sent += size_t(put);
  }
  return true;
}

void Child::close_input() {
  if (input_ >= 0) ::close(std::exchange(input_, -1));
}

bool Child::stopped() const {
  if (pid_ <= 0) return false;
  const auto usage = process_usage(pid_);
  return usage && usage->state == 'T';
}

bool Child::poll_exit(ChildExit* exit) {
  if (pid_ <= 0) return false;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) != pid_) return false;
  pid_ = -1;
  if (pidfd_ >= 0) ::close(std::exchange(pidfd_, -1));
  if (WIFSIGNALED(status)) {
    exit->signal = WTERMSIG(status);
    exit->exit_code = -1;
    const char* name = sigabbrev_np(exit->signal);
    exit->cause = std::string("killed by SIG") + (name ? name : std::to_string(exit->signal).c_str());
    if (exit->signal == SIGKILL && oom_kills() > oom_kills_before_) exit->cause += " (out of memory: the kernel's oom_kill count rose)";
  } else {
    exit->exit_code = WEXITSTATUS(status);
    exit->cause = describe_exit(exit->exit_code);
  }
  return true;
}

ChildExit Child::stop(Millis grace_ms) {
  ChildExit exit;
  send(SIGTERM);
  const Millis end = monotonic_ms() + grace_ms;
  while (running() && !poll_exit(&exit)) {
    const Millis left = end - monotonic_ms();
    if (left <= 0) send(SIGKILL);
    pollfd wait{pidfd_, POLLIN, 0};
    poll(&wait, 1, int(left > 0 ? std::min<Millis>(left, 100) : 100));
  }
  return exit;
}

SignalWatch::SignalWatch() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  fd_ = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}
SignalWatch::~SignalWatch() { ::close(fd_); }
int SignalWatch::count() {
  signalfd_siginfo info;
  while (::read(fd_, &info, sizeof info) == sizeof info) ++count_, last_ = int(info.ssi_signo);
  return count_;
}

}  // namespace tessera
