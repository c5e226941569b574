// The real tessera-worker as a process, this test as its coordinator, a shell script as the trainer. Deadlines are
// generous and waits end on the event; nothing is asserted about speed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "common/clock.h"
#include "common/file.h"
#include "common/process.h"
#include "common/version.h"
#include "proto/channel.h"
#include "tests/unit/common/scratch.h"
#include "worker/daemon/supervisor.h"

namespace tessera::worker {
namespace {

constexpr int kDeadlineMs = 30000;

// Writes a line (pid, incarnation, environment, arguments) to $FAKE/started, then does what $FAKE/mode says.
const char* const kTrainer = R"sh(#!/bin/sh
echo "$$ $TESSERA_INCARNATION MKL_CBWR=$MKL_CBWR OMP_NUM_THREADS=$OMP_NUM_THREADS SPINS=$GOMP_SPINCOUNT ATEN=$ATEN_CPU_CAPABILITY DNNL=$DNNL_VERBOSE $*" >> "$FAKE/started"
case "$*" in
  *--standby*) read -r prepare && echo "$prepare" >> "$FAKE/prepared" && read -r order && echo "$order" >> "$FAKE/orders" && exec sleep 600; exit 0 ;;
esac
case "$(cat "$FAKE/mode")" in
  run) exec sleep 600 ;;
  polite) trap 'kill $!; exit 75' TERM; sleep 600 & echo up >> "$FAKE/ready"; wait ;;
  stubborn) trap '' TERM INT; echo up >> "$FAKE/ready"; exec sleep 600 ;;
  config) exit 78 ;;
  crash) exit 3 ;;
  leaves) trap 'echo term >> "$FAKE/termed"' TERM; while [ ! -e "$FAKE/leave" ]; do sleep 0.02; done; exit 0 ;;
esac
)sh";

struct Started {
  pid_t pid = 0;
  uint64_t incarnation = 0;
  std::string line;
};

bool alive(pid_t pid) {
  const auto stat = read_file("/proc/" + std::to_string(pid) + "/stat");
  return stat && stat->find(") Z") == std::string::npos;
}

struct DaemonTest : testing::Test {
  test::Scratch folder;
  proto::Server coordinator = bind(0).value();
  Child daemon;
  std::string peer;

  static Result<proto::Server> bind(int port) {
    proto::ChannelOptions options;
    options.sender = "coordinator";
    return proto::Server::bind("127.0.0.1", port, options);
  }
  void mode(const std::string& what) { std::ofstream(folder / "mode") << what; }

  void start(const std::vector<std::string>& arguments = {"--workers", "1"}) {
    std::ofstream(folder / "trainer") << kTrainer;
    ::chmod((folder / "trainer").c_str(), 0755);
    SpawnOptions options;
    options.command = {executable_folder() + "/../bin/tessera-worker", "--coordinator", "127.0.0.1:" + std::to_string(coordinator.port()), "--name", "node-a"};
    options.command.insert(options.command.end(), arguments.begin(), arguments.end());
    options.set_env = {{"FAKE", folder.path()}, {"TESSERA_TRAINER", folder / "trainer"}, {"ATEN_CPU_CAPABILITY", "default"}, {"DNNL_VERBOSE", "1"}, {"OMP_NUM_THREADS", "64"}};
    options.output_file = folder / "log";
    daemon = Child::spawn(options).value();
  }

  // The next message of that type, others thrown away.
  template <typename T>
  std::optional<T> await() {
    for (const Millis deadline = monotonic_ms() + kDeadlineMs; monotonic_ms() < deadline;) {
      auto incoming = coordinator.receive(100);
      if (!incoming) continue;
      peer = incoming->peer;
      if (auto* message = std::get_if<T>(&incoming->envelope.payload)) return *message;
    }
    ADD_FAILURE() << "the message never came; the daemon's log:\n" << read_file(folder / "log").value_or("none");
    return std::nullopt;
  }
  void tell(const proto::Payload& payload) { ASSERT_TRUE(coordinator.send(peer, payload)); }
  void welcome(int64_t spares = 0) {
    ASSERT_TRUE(await<proto::DaemonHello>());
    OperationConfig operation;
    operation.compute_threads = 3;
    operation.spares = spares;
    tell(proto::DaemonWelcome{"run", "runs/run", "the function", print_operation(operation)});
  }
  std::vector<Started> started() {
    std::vector<Started> out;
    std::istringstream lines(read_file(folder / "started").value_or(""));
    for (std::string line; std::getline(lines, line);) {
      Started one;
      std::istringstream words(line);
      std::string incarnation;
      words >> one.pid >> incarnation;
      one.incarnation = std::strtoull(incarnation.substr(incarnation.find('=') + 1).c_str(), nullptr, 10);
      one.line = line;
      out.push_back(one);
    }
    return out;
  }
  template <typename Condition>
  bool until(Condition condition) {
    for (const Millis deadline = monotonic_ms() + kDeadlineMs; !condition() && monotonic_ms() < deadline;) (void)coordinator.receive(20);
    return condition();
  }
  std::vector<Started> await_started(size_t count) {
    EXPECT_TRUE(until([&] { return started().size() >= count; })) << read_file(folder / "log").value_or("");
    auto all = started();
    all.resize(std::max(all.size(), count));
    return all;
  }
  // Lets the daemon's messages come in until it has ended.
  ChildExit await_end() {
    ChildExit exit;
    EXPECT_TRUE(until([&] { return !daemon.running() || daemon.poll_exit(&exit); })) << read_file(folder / "log").value_or("");
    return exit;
  }
};

TEST_F(DaemonTest, OffersItsSlotsAndStartsTrainersWithTheirArgumentsAndAPinnedEnvironment) {
  mode("run");
  start({"--devices", "cpu,cuda:1", "--advertise", "10.0.0.7", "--log-dir", folder / "logs"});
  const auto hello = await<proto::DaemonHello>();
  ASSERT_TRUE(hello);
  EXPECT_EQ(hello->build.protocol, kProtocolVersion);
  EXPECT_EQ(hello->pid, daemon.pid());
  ASSERT_EQ(hello->slots.size(), 2u);
  EXPECT_EQ(hello->slots[1].worker_id, "node-a/1");
  EXPECT_EQ(hello->slots[1].device, "cuda:1");
  EXPECT_TRUE(started().empty()) << "nothing starts before the welcome";
  OperationConfig operation;
  operation.compute_threads = 3;
  tell(proto::DaemonWelcome{"run", "runs/run", "", print_operation(operation)});
  const auto trainers = await_started(2);
  for (const auto& trainer : trainers) {
    const std::string id = trainer.line.find("node-a/0 --device") != std::string::npos ? "node-a/0" : "node-a/1";
    EXPECT_NE(trainer.incarnation, 0u);
    EXPECT_THAT(trainer.line, testing::HasSubstr(" " + id + "=" + std::to_string(trainer.incarnation) + " MKL_CBWR=AVX2 OMP_NUM_THREADS=3 SPINS=" + std::string(kOpenMpSpins) + " ATEN= DNNL= --coordinator 127.0.0.1:" + std::to_string(coordinator.port()) +
                                                 " --worker-id " + id + " --device " + (id == "node-a/0" ? "cpu" : "cuda:1") + " --advertise 10.0.0.7 --threads 3 --log-dir " + (folder / "logs")));
  }
  std::optional<proto::DaemonStatus> status;
  do status = await<proto::DaemonStatus>();
  while (status && status->running.size() < 2);
  ASSERT_TRUE(status);
  EXPECT_THAT(status->running, testing::ElementsAre("node-a/0", "node-a/1"));
}

TEST_F(DaemonTest, AKilledTrainerIsReportedWithItsCauseAndStartedAgain) {
  mode("run");
  start();
  welcome();
  const Started first = await_started(1)[0];
  ::kill(first.pid, SIGKILL);
  const auto exited = await<proto::TrainerExited>();
  ASSERT_TRUE(exited);
  EXPECT_EQ(exited->worker_id, "node-a/0");
  EXPECT_EQ(exited->signal, SIGKILL);
  EXPECT_EQ(exited->exit_code, -1);
  EXPECT_EQ(exited->incarnation, first.incarnation);
  EXPECT_THAT(exited->cause, testing::HasSubstr("killed by SIGKILL"));
  EXPECT_TRUE(exited->will_restart);
  const Started second = await_started(2)[1];
  EXPECT_NE(second.pid, first.pid);
  EXPECT_NE(second.incarnation, first.incarnation);
}

TEST_F(DaemonTest, ATrainerThatWouldFailAgainIsNotStartedAgain) {
  mode("config");
  start();
  welcome();
  const auto exited = await<proto::TrainerExited>();
  ASSERT_TRUE(exited);
  EXPECT_EQ(exited->exit_code, exit_codes::kConfig);
  EXPECT_FALSE(exited->will_restart);
  for (int i = 0; i < 5; ++i) {  // a second of heartbeats: several backoffs would fit
    const auto status = await<proto::DaemonStatus>();
    ASSERT_TRUE(status);
    EXPECT_TRUE(status->running.empty());
  }
  EXPECT_EQ(started().size(), 1u);
}

TEST_F(DaemonTest, ACrashingTrainerIsTriedAgainAndAgain) {
  mode("crash");
  start();
  welcome();
  await_started(3);
  const auto exited = await<proto::TrainerExited>();
  ASSERT_TRUE(exited);
  EXPECT_EQ(exited->exit_code, 3);
  EXPECT_TRUE(exited->will_restart);
}

TEST_F(DaemonTest, FencingKillsThatIncarnationOnlyAndConfirms) {
  mode("stubborn");
  start();
  welcome();
  const Started first = await_started(1)[0];
  tell(proto::FenceTrainer{"node-a/0", first.incarnation + 2, "an older one"});
  auto fenced = await<proto::TrainerFenced>();
  ASSERT_TRUE(fenced);
  EXPECT_EQ(fenced->incarnation, first.incarnation + 2);
  EXPECT_TRUE(alive(first.pid));
  tell(proto::FenceTrainer{"node-a/0", first.incarnation, "silent"});
  fenced = await<proto::TrainerFenced>();
  ASSERT_TRUE(fenced);
  EXPECT_EQ(fenced->worker_id, "node-a/0");
  EXPECT_EQ(fenced->incarnation, first.incarnation);
  EXPECT_FALSE(alive(first.pid));
  EXPECT_NE(await_started(2)[1].incarnation, first.incarnation);
}

TEST_F(DaemonTest, AStoppedTrainerCanBeFenced) {
  mode("run");
  start();
  welcome();
  const Started first = await_started(1)[0];
  ::kill(first.pid, SIGSTOP);
  tell(proto::FenceTrainer{"node-a/0", first.incarnation, "hangs"});
  EXPECT_TRUE(await<proto::TrainerFenced>());
  EXPECT_FALSE(alive(first.pid));
}

TEST_F(DaemonTest, ATrainerThatASignalStoppedIsKilledAndReported) {
  mode("run");
  start();
  welcome();
  const Started first = await_started(1)[0];
  ::kill(first.pid, SIGSTOP);
  const auto exited = await<proto::TrainerExited>();
  ASSERT_TRUE(exited);
  EXPECT_THAT(exited->cause, testing::HasSubstr("stopped by a signal"));
  EXPECT_TRUE(exited->will_restart);
  EXPECT_FALSE(alive(first.pid));
  EXPECT_NE(await_started(2)[1].incarnation, first.incarnation);
}

TEST_F(DaemonTest, AStandbyTakesADeadTrainersPlaceAndAnotherIsMade) {
  mode("run");
  start();
  welcome(1);
  const auto both = await_started(2);  // the trainer, then its standby
  EXPECT_THAT(both[1].line, testing::HasSubstr("--standby"));
  const auto written = [&](const char* name) { return read_file(folder / name).value_or("").ends_with("\n"); };
  ASSERT_TRUE(until([&] { return written("prepared"); }));
  EXPECT_THAT(*read_file(folder / "prepared"), testing::AllOf(testing::HasSubstr("\"function\":\"the function\""), testing::HasSubstr("\"device\":\"cpu\"")));
  ::kill(both[0].pid, SIGKILL);
  const auto exited = await<proto::TrainerExited>();
  ASSERT_TRUE(exited);
  EXPECT_EQ(exited->incarnation, both[0].incarnation);
  ASSERT_TRUE(until([&] { return written("orders"); }));
  EXPECT_THAT(*read_file(folder / "orders"), testing::AllOf(testing::HasSubstr("\"worker_id\":\"node-a/0\""), testing::Not(testing::HasSubstr(std::to_string(both[0].incarnation)))));
  EXPECT_THAT(await_started(3)[2].line, testing::HasSubstr("--standby")) << "nothing but a new standby was started";
  ::kill(both[1].pid, SIGKILL);  // it is the trainer now
  const auto again = await<proto::TrainerExited>();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->worker_id, "node-a/0");
}

TEST_F(DaemonTest, SigtermDrainsAndSaysGoodbye) {
  mode("polite");
  start({"--workers", "1", "--drain-seconds", "0"});
  welcome();
  ASSERT_TRUE(until([&] { return access((folder / "ready").c_str(), F_OK) == 0; }));
  daemon.send(SIGTERM);
  const auto exited = await<proto::TrainerExited>();
  ASSERT_TRUE(exited);
  EXPECT_EQ(exited->exit_code, exit_codes::kDrained);
  EXPECT_FALSE(exited->will_restart);
  const auto goodbye = await<proto::Goodbye>();
  ASSERT_TRUE(goodbye);
  EXPECT_EQ(goodbye->exit_code, exit_codes::kDrained);
  EXPECT_EQ(await_end().exit_code, exit_codes::kDrained);
}

TEST_F(DaemonTest, SigtermAsksTheCoordinatorFirstAndTouchesNoTrainer) {
  mode("leaves");
  start();
  welcome();
  const Started trainer = await_started(1)[0];
  daemon.send(SIGTERM);
  const auto asked = await<proto::Goodbye>();
  ASSERT_TRUE(asked);
  EXPECT_EQ(asked->exit_code, exit_codes::kDrained);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(await<proto::DaemonStatus>());
  EXPECT_TRUE(alive(trainer.pid));
  std::ofstream(folder / "leave");  // the coordinator's Shutdown reached it
  EXPECT_TRUE(await<proto::TrainerExited>());
  EXPECT_EQ(await_end().exit_code, exit_codes::kDrained);
  EXPECT_NE(access((folder / "termed").c_str(), F_OK), 0) << "it was sent SIGTERM";
}

TEST_F(DaemonTest, HeartbeatsGoOnWhileDrainingAndTheSecondSignalKills) {
  mode("stubborn");
  start();
  welcome();
  const Started trainer = await_started(1)[0];
  ASSERT_TRUE(until([&] { return access((folder / "ready").c_str(), F_OK) == 0; }));
  daemon.send(SIGINT);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(await<proto::DaemonStatus>());
  EXPECT_TRUE(alive(trainer.pid));
  daemon.send(SIGINT);
  EXPECT_EQ(await_end().exit_code, exit_codes::kDrained);
  EXPECT_FALSE(alive(trainer.pid));
}

TEST_F(DaemonTest, ShutdownLetsTrainersLeaveByThemselvesAndGivesTheCode) {
  mode("leaves");
  start();
  welcome();
  await_started(1);
  tell(proto::Shutdown{"the run is done", 0});
  std::ofstream(folder / "leave");
  const auto exited = await<proto::TrainerExited>();
  ASSERT_TRUE(exited);
  EXPECT_EQ(exited->exit_code, 0);
  EXPECT_EQ(await_end().exit_code, 0);
  EXPECT_NE(access((folder / "termed").c_str(), F_OK), 0) << "it was sent SIGTERM";
}

TEST_F(DaemonTest, RefusalEndsItWithTheReasonsCode) {
  mode("run");
  start();
  ASSERT_TRUE(await<proto::DaemonHello>());
  tell(proto::Refused{"versions differ", exit_codes::kVersionMismatch});
  EXPECT_EQ(await_end().exit_code, exit_codes::kVersionMismatch);
  EXPECT_THAT(read_file(folder / "log").value(), testing::HasSubstr("versions differ"));
}

TEST_F(DaemonTest, AKilledDaemonTakesItsTrainersAlong) {
  mode("stubborn");
  start({"--workers", "2"});
  welcome();
  const auto trainers = await_started(2);
  daemon.send(SIGKILL);
  EXPECT_EQ(await_end().signal, SIGKILL);
  EXPECT_TRUE(until([&] { return !alive(trainers[0].pid) && !alive(trainers[1].pid); }));
}

TEST_F(DaemonTest, LosingTheCoordinatorEndsNothing) {
  mode("run");
  start();
  welcome();
  const Started trainer = await_started(1)[0];
  const int port = coordinator.port();
  {
    const proto::Server gone = std::move(coordinator);
  }
  auto again = bind(port);
  for (const Millis deadline = monotonic_ms() + kDeadlineMs; !again && monotonic_ms() < deadline;) again = bind(port);
  ASSERT_TRUE(again);
  coordinator = std::move(*again);
  const auto status = await<proto::DaemonStatus>();
  ASSERT_TRUE(status);
  EXPECT_THAT(status->running, testing::ElementsAre("node-a/0"));
  tell(proto::Reintroduce{});
  welcome();
  ASSERT_TRUE(await<proto::DaemonStatus>());
  EXPECT_TRUE(alive(trainer.pid));
  EXPECT_EQ(started().size(), 1u);
}

TEST_F(DaemonTest, MistakesOfTheCommandLineAreNamed) {
  mode("run");
  const auto run = [&](const std::vector<std::string>& arguments) {
    std::remove((folder / "log").c_str());
    start(arguments);
    return await_end().exit_code;
  };
  EXPECT_EQ(run({"--workers", "0"}), exit_codes::kUsage);
  EXPECT_EQ(run({"--workers", "1", "--devices", "cpu"}), exit_codes::kUsage);
  EXPECT_EQ(run({"--no-such"}), exit_codes::kUsage);
  EXPECT_EQ(run({"--trainer", folder / "none"}), exit_codes::kConfig);
  EXPECT_THAT(read_file(folder / "log").value(), testing::HasSubstr("--trainer"));
}

TEST(Supervisor, BackoffDoublesUpToFiveSeconds) {
  EXPECT_EQ(restart_delay_ms(1), 100);
  EXPECT_EQ(restart_delay_ms(2), 200);
  EXPECT_EQ(restart_delay_ms(6), 3200);
  EXPECT_EQ(restart_delay_ms(7), 5000);
  EXPECT_EQ(restart_delay_ms(1000000), 5000);
}

TEST(Supervisor, SomeExitsAreFinal) {
  for (const int code : {0, 64, 65, 75, 77, 78, 80, 82, 84, 85}) EXPECT_EQ(restart_policy({code, 0, ""}), Restart::kNever) << code;
  for (const int code : {1, 3, 69, 70, 74, 127}) EXPECT_EQ(restart_policy({code, 0, ""}), Restart::kAgain) << code;
  EXPECT_EQ(restart_policy({-1, SIGKILL, ""}), Restart::kAgain);
}

}  // namespace
}  // namespace tessera::worker
