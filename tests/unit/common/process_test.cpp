// Real child processes: spawned, killed, outlived. Deadlines are generous; nothing is asserted about speed.
#include "common/process.h"
#include "common/process_usage.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "common/clock.h"
#include "common/file.h"
#include "scratch.h"

namespace tessera {
namespace {

constexpr int kDeadlineMs = 20000;

Child shell(const std::string& script, SpawnOptions options = {}) {
  options.command = {"/bin/sh", "-c", script};
  auto child = Child::spawn(options);
  EXPECT_TRUE(child) << (child ? "" : child.error().message);
  return child ? std::move(*child) : Child();
}
ChildExit ended(Child& child) {
  ChildExit exit;
  pollfd wait{child.descriptor(), POLLIN, 0};
  EXPECT_EQ(::poll(&wait, 1, kDeadlineMs), 1) << "the pidfd never became readable";
  EXPECT_TRUE(child.poll_exit(&exit));
  EXPECT_FALSE(child.running());
  EXPECT_EQ(child.descriptor(), -1);
  return exit;
}
std::string output_of(const std::string& script, SpawnOptions options = {}) {
  const test::Scratch folder;
  options.output_file = folder / "out";
  Child child = shell(script, options);
  EXPECT_EQ(ended(child).exit_code, 0);
  return read_file(folder / "out").value_or("");
}

TEST(Process, ExitCodesComeWithTheirMeaning) {
  Child child = shell("exit 75");
  const ChildExit exit = ended(child);
  EXPECT_EQ(exit.exit_code, 75);
  EXPECT_EQ(exit.signal, 0);
  EXPECT_EQ(exit.cause, "exit code 75 (drained after a checkpoint)");
  EXPECT_EQ(describe_exit(3), "exit code 3");
}

TEST(Process, SignalsAreNamed) {
  Child child = shell("kill -SEGV $$; exec sleep 60");
  const ChildExit exit = ended(child);
  EXPECT_EQ(exit.exit_code, -1);
  EXPECT_EQ(exit.signal, SIGSEGV);
  EXPECT_EQ(exit.cause, "killed by SIGSEGV");
}

TEST(Process, AProgramThatCannotStartIsNamed) {
  SpawnOptions options;
  options.command = {"/no/such/program"};
  const auto missing = Child::spawn(options);
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("/no/such/program: No such file"), std::string::npos) << missing.error().message;
  options.command = {"/etc/hostname"};
  EXPECT_FALSE(Child::spawn(options));
  options.command = {"/bin/true"};
  options.output_file = "/no/such/folder/log";
  const auto log = Child::spawn(options);
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().code, ErrorCode::kIo);
  EXPECT_FALSE(Child::spawn({}));
}

TEST(Process, EnvironmentIsAddedAndCleared) {
  ::setenv("TESSERA_TEST_KEEP", "kept", 1);
  ::setenv("MKL_DEBUG_CPU_TYPE", "5", 1);
  ::setenv("OMP_NUM_THREADS", "64", 1);
  SpawnOptions options;
  options.clear_env_prefixes = {"MKL_", "OMP_"};
  options.set_env = {{"MKL_CBWR", "AVX2"}, {"OMP_NUM_THREADS", "1"}};
  EXPECT_EQ(output_of("echo $TESSERA_TEST_KEEP,$MKL_DEBUG_CPU_TYPE,$MKL_CBWR,$OMP_NUM_THREADS", options), "kept,,AVX2,1\n");
}

TEST(Process, OutputIsAppended) {
  const test::Scratch folder;
  SpawnOptions options;
  options.output_file = folder / "log";
  for (const char* script : {"echo one", "echo two >&2"}) {
    Child child = shell(script, options);
    ended(child);
  }
  EXPECT_EQ(read_file(folder / "log").value(), "one\ntwo\n");
}

TEST(Process, ChildStartsWithSignalsUnblockedAndNoInput) {
  SignalWatch watch;  // blocks SIGTERM and SIGINT here
  Child child = shell("cat; exec sleep 60");
  child.send(SIGTERM);
  EXPECT_EQ(ended(child).signal, SIGTERM);
}

TEST(Process, StopTermsThenKills) {
  Child polite = shell("trap 'exit 75' TERM; while :; do sleep 0.01; done");
  Child stubborn = shell("trap '' TERM; echo ready; while :; do sleep 0.01; done");
  ::usleep(200000);  // until the traps are set; a trap that comes late only makes the first case end by signal
  EXPECT_EQ(polite.stop(kDeadlineMs).exit_code, 75);
  EXPECT_EQ(stubborn.stop(100).signal, SIGKILL);
  EXPECT_FALSE(polite.running() || stubborn.running());
}

TEST(Process, ObjectsThatGoTakeTheirProcessWithThem) {
  pid_t pid = 0;
  {
    Child child = shell("exec sleep 60");
    pid = child.pid();
    Child moved = std::move(child);
    EXPECT_FALSE(child.running());
    EXPECT_EQ(moved.pid(), pid);
    EXPECT_EQ(::kill(pid, 0), 0);
  }
  EXPECT_EQ(::kill(pid, 0), -1);
  Child first = shell("exec sleep 60");
  const pid_t replaced = first.pid();
  first = shell("exec sleep 60");
  EXPECT_EQ(::kill(replaced, 0), -1) << "assignment must end the process that it replaces";
}

// A parent that is killed takes the child with it: this process forks a parent, which spawns a child and is killed.
TEST(Process, ChildrenDieWithTheirParent) {
  int report[2];
  ASSERT_EQ(::pipe(report), 0);
  const pid_t parent = ::fork();
  if (parent == 0) {
    SpawnOptions options;
    options.command = {"/bin/sleep", "60"};
    auto child = Child::spawn(options);
    const pid_t pid = child ? child->pid() : -1;
    if (::write(report[1], &pid, sizeof pid) != sizeof pid) _exit(1);
    ::pause();
    _exit(0);
  }
  pid_t child = 0;
  ASSERT_EQ(::read(report[0], &child, sizeof child), ssize_t(sizeof child));
  ASSERT_GT(child, 0);
  ASSERT_EQ(::kill(child, 0), 0);
  ::kill(parent, SIGKILL);
  ::waitpid(parent, nullptr, 0);
  const Millis end = monotonic_ms() + kDeadlineMs;
  const auto alive = [&] {  // an orphan may stay a zombie until its new parent reaps it
    const auto stat = read_file("/proc/" + std::to_string(child) + "/stat");
    return stat && stat->find(") Z") == std::string::npos;
  };
  while (alive() && monotonic_ms() < end) ::usleep(1000);
  EXPECT_FALSE(alive());
  ::close(report[0]), ::close(report[1]);
}

TEST(Process, SignalWatchCountsFirstAndSecond) {
  SignalWatch watch;
  EXPECT_EQ(watch.count(), 0);
  ::kill(::getpid(), SIGINT);
  pollfd wait{watch.descriptor(), POLLIN, 0};
  ASSERT_EQ(::poll(&wait, 1, kDeadlineMs), 1);
  EXPECT_EQ(watch.count(), 1);
  EXPECT_EQ(watch.last(), SIGINT);
  ::kill(::getpid(), SIGTERM);
  EXPECT_EQ(watch.count(), 2);
  EXPECT_EQ(watch.count(), 2) << "no new signal";
  EXPECT_EQ(watch.last(), SIGTERM);
}

}  // namespace
TEST(ProcessUsage, IsThatOfTheProcess) {
  const auto self = process_usage(getpid());
  ASSERT_TRUE(self);
  EXPECT_EQ(self->parent, getppid());
  EXPECT_FALSE(self->name.empty());
  EXPECT_GT(self->resident_bytes, 1 << 20);
  EXPECT_GE(peak_resident_bytes(getpid()), self->resident_bytes / 2);
  EXPECT_FALSE(process_usage(0));
  EXPECT_EQ(peak_resident_bytes(0), 0);
}

}  // namespace tessera
