// The real `tessera` program against a fake coordinator over real sockets, and against fake programs beside it.
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <gtest/gtest.h>
#include <mutex>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "ops/cli/output.h"
#include "tests/unit/ops/support.h"

namespace tessera::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using test::TempFolder;
using test::write_text;

// Answers as a coordinator does; ends its answers once it was asked to stop.
class FakeCoordinator {
 public:
  FakeCoordinator() : acceptor_(io_, {asio::ip::make_address("127.0.0.1"), 0}), thread_([this] { serve(); }) {}
  ~FakeCoordinator() {
    closing_ = true;
    asio::io_context io;
    asio::ip::tcp::socket poke(io);
    beast::error_code ignored;
    poke.connect(acceptor_.local_endpoint(), ignored);
    thread_.join();
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port()); }
  std::vector<std::string> requests() {
    std::lock_guard lock(mutex_);
    return requests_;
  }
  void write_address(const std::string& run_dir, const std::string& token) const {
    write_text(run_dir + "/address.json", Json{{"control", "127.0.0.1:1"}, {"http", url()}, {"token", token}, {"run_id", "fake"}, {"pid", ::getpid()}}.dump());
  }
  std::atomic<bool> stopped_{false};

 private:
  void serve() {
    for (;;) {
      asio::ip::tcp::socket socket(io_);
      beast::error_code error;
      acceptor_.accept(socket, error);
      if (closing_) return;
      if (error || stopped_) continue;  // closes at once, as a process that is gone
      beast::flat_buffer buffer;
      http::request<http::string_body> request;
      http::read(socket, buffer, request, error);
      if (error) continue;
      http::write(socket, answer(request), error);
    }
  }
  http::response<http::string_body> answer(const http::request<http::string_body>& request) {
    const std::string target(request.target());
    const bool post = request.method() == http::verb::post;
    {
      std::lock_guard lock(mutex_);
      requests_.push_back((post ? "POST " : "GET ") + target);
    }
    http::response<http::string_body> reply{http::status::ok, 11};
    reply.keep_alive(false);
    if (post && request[http::field::authorization] != "Bearer secret") {
      reply.result(http::status::unauthorized);
      reply.body() = R"({"title":"Unauthorized","detail":"commands need a token"})";
    } else if (post) {
      if (target == "/api/v1/stop") stopped_ = true;
      reply.body() = "{}";
    } else if (target == "/api/v1/status") {
      reply.body() = R"({"schema":1,"run":{"id":"fake","state":"RUNNING","reason":"","generation":"1.1"},"progress":{"step":7,"total_steps":30},"training":{"loss":0.25},"checkpoint":{"last_step":5}})";
    } else if (target.starts_with("/api/v1/events")) {
      reply.body() = R"({"schema":1,"events":[{"id":1,"time":0,"severity":"info","text":"loader loader-0 joined"},{"id":2,"time":1,"severity":"warning","text":"worker a/0 is lost"}]})";
    } else {
      reply.result(http::status::not_found);
      reply.body() = "{}";
    }
    reply.prepare_payload();
    return reply;
  }

  asio::io_context io_;
  asio::ip::tcp::acceptor acceptor_;
  std::atomic<bool> closing_{false};
  std::mutex mutex_;
  std::vector<std::string> requests_;
  std::thread thread_;
};

struct Outcome {
  int code = -1;
  std::string out, err;
  Json json() const {
    const size_t end = out.find_last_not_of('\n');
    const size_t begin = out.rfind('\n', end);
    return Json::parse(out.substr(begin == std::string::npos ? 0 : begin + 1), nullptr, false);
  }
};

const std::string kProgram = std::string(TESSERA_BIN_DIR) + "/tessera";

// Runs a program in a folder.
Outcome tessera(const TempFolder& folder, const std::string& arguments, const std::string& program = kProgram) {
  const std::string line = "cd '" + folder.path() + "' && env -u TESSERA_COORDINATOR -u TESSERA_CONFIG '" + program + "' " + arguments + " >stdout.txt 2>stderr.txt </dev/null";
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, test::read_text(folder / "stdout.txt"), test::read_text(folder / "stderr.txt")};
}

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST(Command, StatusOfALiveRun) {
  FakeCoordinator fake;
  const TempFolder folder;
  fake.write_address(folder / "runs/fake", "secret");
  for (const std::string& run : {std::string(), std::string("fake"), fake.url()}) {
    const Outcome text = tessera(folder, "status " + run);
    EXPECT_EQ(text.code, 0) << text.err;
    EXPECT_HAS(text.out, "step 7/30 (23 %)");
    const Outcome json = tessera(folder, "status " + run + " --json");
    EXPECT_EQ(json.json()["progress"]["step"], 7) << json.out;
  }
}

TEST(Command, EventsAreSentences) {
  FakeCoordinator fake;
  const TempFolder folder;
  const Outcome outcome = tessera(folder, "events " + fake.url());
  EXPECT_EQ(outcome.code, 0);
  EXPECT_HAS(outcome.out, "warning  worker a/0 is lost");
}

TEST(Command, StopPostsTheTokenAndWaits) {
  FakeCoordinator fake;
  const TempFolder folder;
  fake.write_address(folder / "runs/fake", "secret");
  const Outcome outcome = tessera(folder, "stop fake --wait 20 --json");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.json()["stopped"], true) << outcome.out;
  EXPECT_EQ(fake.requests().front(), "POST /api/v1/stop");
}

TEST(Command, AWrongTokenIsRefusedWith77) {
  FakeCoordinator fake;
  const TempFolder folder;
  const Outcome outcome = tessera(folder, "stop " + fake.url() + " --token wrong");
  EXPECT_EQ(outcome.code, 77);
  EXPECT_HAS(outcome.err, "address.json");
  EXPECT_FALSE(fake.stopped_);
  EXPECT_EQ(tessera(folder, "stop " + fake.url()).code, 77);
}

TEST(Command, CheckpointNow) {
  FakeCoordinator fake;
  const TempFolder folder;
  fake.write_address(folder / "runs/fake", "secret");
  EXPECT_EQ(tessera(folder, "checkpoint now fake").code, 0);
  EXPECT_EQ(fake.requests().back(), "POST /api/v1/checkpoint");
}

TEST(Command, NobodyThereIs69) {
  const TempFolder folder;
  std::string url;
  {
    FakeCoordinator fake;
    url = fake.url();
    fake.write_address(folder / "runs/fake", "secret");
  }
  const Outcome by_url = tessera(folder, "status " + url + " --json");
  EXPECT_EQ(by_url.code, 69);
  EXPECT_EQ(by_url.json()["exit_code"], 69) << by_url.out;
  const Outcome by_name = tessera(folder, "status fake");
  EXPECT_EQ(by_name.code, 69);
  EXPECT_HAS(by_name.err, "--resume");
  EXPECT_EQ(tessera(folder, "stop fake").code, 69);
}

TEST(Command, WrongFlagNamesTheNearest) {
  const TempFolder folder;
  const Outcome outcome = tessera(folder, "up configs/a.yaml --wrokers 2");
  EXPECT_EQ(outcome.code, 64);
  EXPECT_HAS(outcome.err, "did you mean --workers instead of --wrokers?");
  EXPECT_EQ(tessera(folder, "statsu").code, 64);
  EXPECT_EQ(tessera(folder, "up a.yaml --fresh --resume").code, 64);
  EXPECT_EQ(tessera(folder, "up a.yaml --workers 0").code, 64);
  EXPECT_EQ(tessera(folder, "--help").code, 0);
}

TEST(Command, BenchTrainRefusesWhatItCannotMeasure) {
  const TempFolder folder;
  for (const char* bad : {"--steps 0", "--workers 0", "--tiels 2", "--precision fp8", "--peak-tflops -1", "--config no-such.yaml"}) EXPECT_EQ(tessera(folder, std::string("bench train ") + bad).code, 64) << bad;
  const Outcome model = tessera(folder, "bench train --model vit_nano --json");
  EXPECT_EQ(model.code, 78);
  EXPECT_HAS(model.err, "function.model.name");
  EXPECT_EQ(tessera(folder, "bench train --help").code, 0);
}

TEST(Command, WrongPathAndWrongKeyAre78) {
  const TempFolder folder;
  const Outcome path = tessera(folder, "up no-such.yaml --json");
  EXPECT_EQ(path.code, 78);
  EXPECT_HAS(path.err, "no-such.yaml");
  EXPECT_EQ(path.json()["exit_code"], 78);
  write_text(folder / "a.yaml", "function:\n  sead: 1\n");
  const Outcome key = tessera(folder, "config check a.yaml");
  EXPECT_EQ(key.code, 78);
  EXPECT_HAS(key.err, "did you mean function.seed");
  EXPECT_HAS(key.err, "a.yaml:2");
}

TEST(Command, AnImpossibleMaskIs78) {
  const TempFolder folder;
  write_text(folder / "a.yaml", "function:\n  model: {image_size: 64, patch_size: 8}\n  masks: {min_keep: 10}\n");
  const Outcome outcome = tessera(folder, "config check a.yaml");
  EXPECT_EQ(outcome.code, 78);
  EXPECT_HAS(outcome.err, "min_keep <=");
}

TEST(Command, HelpersThatAreNotBuiltAreNamed) {
  const TempFolder folder;
  std::filesystem::create_directories(folder / "bin");
  std::filesystem::copy_file(kProgram, folder / "bin/tessera");
  for (const char* word : {"data", "evaluate", "import"}) {
    const Outcome outcome = tessera(folder, std::string(word) + " x", folder / "bin/tessera");
    EXPECT_EQ(outcome.code, 69);
    EXPECT_HAS(outcome.err, "build it with");
  }
}

// The command beside programs that are shell scripts.
class FakePrograms : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_ / "bin");
    std::filesystem::copy_file(kProgram, folder_ / "bin/tessera");
    script("tessera-data", "echo '{\"schema\":1,\"samples\":1000,\"shards\":1,\"manifest_digest\":\"00000000000000000000000000000000\",\"bad\":[]}'");
    for (const char* name : {"tessera-coordinator", "tessera-loader", "tessera-worker", "tessera-trainer"}) script(name, "exec sleep 60");
    write_text(folder_ / "a.yaml", "function:\n  model: {image_size: 64, patch_size: 8}\n  masks: {min_keep: 4}\n  steps: 5\noperation: {data_path: images}\n");
  }
  void script(const std::string& name, const std::string& body) {
    const std::string path = folder_ / "bin/" + name;
    write_text(path, "#!/bin/sh\n" + body + "\n");
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  }
  // Writes its address as a coordinator does, then goes on with `rest`. The run's folder is its third argument.
  void coordinator(const std::string& rest) {
    script("tessera-coordinator", "echo \"{\\\"control\\\":\\\"127.0.0.1:1\\\",\\\"http\\\":\\\"http://127.0.0.1:1\\\",\\\"token\\\":\\\"t\\\",\\\"run_id\\\":\\\"a\\\",\\\"pid\\\":$$}\" >\"$3/address.tmp\"; mv \"$3/address.tmp\" \"$3/address.json\"\n" + rest);
  }
  Outcome up(const std::string& arguments = "") { return tessera(folder_, "up a.yaml --json " + arguments, folder_ / "bin/tessera"); }
  TempFolder folder_;
};

TEST_F(FakePrograms, ACoordinatorThatRefusesIsQuotedWithItsCode) {
  script("tessera-coordinator", "echo 'port 7000 of 127.0.0.1 is in use' >&2; exit 74");
  const Outcome outcome = up();
  EXPECT_EQ(outcome.code, 74);
  EXPECT_HAS(outcome.err, "port 7000 of 127.0.0.1 is in use");
  EXPECT_EQ(outcome.json()["exit_code"], 74) << outcome.out;
}

TEST_F(FakePrograms, TheExitCodeIsTheCoordinators) {
  coordinator("exit 80");
  const Outcome outcome = up();
  EXPECT_EQ(outcome.code, 80);
  EXPECT_HAS(outcome.err, "non-finite loss");
  coordinator("exit 75");
  EXPECT_EQ(up("--set operation.run_id=b").code, 75);
}

TEST_F(FakePrograms, ACoordinatorThatDiesAgainAndAgainIsReportedWithItsLastLines) {
  coordinator("echo 'about to fall' >&2; kill -9 $$");
  const Outcome outcome = up();
  EXPECT_EQ(outcome.code, 70);
  EXPECT_HAS(outcome.err, "SIGKILL");
  EXPECT_HAS(outcome.err, "training goes on; started again (5 of at most 5 times in a row)");
  EXPECT_HAS(outcome.err, "about to fall");
  EXPECT_HAS(outcome.err, "--resume");
}

TEST_F(FakePrograms, ALoaderThatIsKilledIsStartedAgain) {
  coordinator("while [ ! -e \"$3/second\" ]; do sleep 0.05; done; exit 0");
  script("tessera-loader", "run=$(dirname \"$2\"); if [ -e \"$run/first\" ]; then touch \"$run/second\"; exec sleep 60; fi; touch \"$run/first\"; kill -9 $$");
  const Outcome outcome = up();
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_HAS(outcome.err, "loader-0 ended: killed by SIGKILL");
  EXPECT_HAS(outcome.err, "started again (1 of at most 5 times in a row)");
}

TEST_F(FakePrograms, ALoaderWithCorruptDataEndsTheRunWithItsCode) {
  coordinator("trap 'exit 75' TERM; while :; do sleep 0.05; done");
  script("tessera-loader", "echo 'shard 3: bytes differ from the manifest' >&2; exit 65");
  const Outcome outcome = up();
  EXPECT_EQ(outcome.code, 65);
  EXPECT_HAS(outcome.err, "shard 3: bytes differ from the manifest");
}

TEST_F(FakePrograms, InterruptedOnceDrainsTwiceKills) {
  coordinator("trap 'exit 75' TERM; while :; do sleep 0.05; done");
  const std::string binary = folder_ / "bin/tessera";
  write_text(folder_ / "drive.sh", "'" + binary + "' up a.yaml & pid=$!\nwhile [ ! -e runs/a/logs/worker.out ]; do sleep 0.05; done\nkill -TERM $pid\nwait $pid\n");
  const Outcome once = tessera(folder_, "drive.sh", "/bin/sh");
  EXPECT_EQ(once.code, 75) << once.err;
  EXPECT_HAS(once.err, "writes a checkpoint");
  EXPECT_HAS(once.err, "--resume");
  coordinator("trap '' TERM; while :; do sleep 0.05; done");
  write_text(folder_ / "drive.sh", "'" + binary + "' up a.yaml --fresh & pid=$!\nwhile [ ! -e runs/a-2/logs/worker.out ]; do sleep 0.05; done\nkill -TERM $pid; sleep 0.5; kill -TERM $pid\nwait $pid\n");
  const Outcome twice = tessera(folder_, "drive.sh", "/bin/sh");
  EXPECT_EQ(twice.code, 75) << twice.err;
  EXPECT_HAS(twice.err, "stopping now");
}

TEST_F(FakePrograms, AnUnfinishedRunIsRefusedBeforeAnythingStarts) {
  std::filesystem::create_directories(folder_ / "runs/a/checkpoints");
  script("tessera-coordinator", "touch started; exit 0");
  const Outcome outcome = up();
  EXPECT_EQ(outcome.code, 64);
  EXPECT_HAS(outcome.err, "tessera up a.yaml --json --resume");
  EXPECT_HAS(outcome.err, "tessera up a.yaml --json --fresh");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "started"));
}

TEST_F(FakePrograms, WhatCanBeKnownBeforeIsSaidBefore) {
  script("tessera-data", "echo '{\"schema\":1,\"error\":\"there is no dataset at images\"}'; exit 65");
  const Outcome data = up();
  EXPECT_EQ(data.code, 65);
  EXPECT_HAS(data.err, "there is no dataset at images");
  script("tessera-data", "echo '{\"schema\":1,\"samples\":1000,\"bad\":[{\"key\":\"x\",\"reason\":\"x.jpg is cut off\"}]}'");
  const Outcome bad = up();
  EXPECT_EQ(bad.code, 65);
  EXPECT_HAS(bad.err, "x.jpg is cut off");
  EXPECT_EQ(up("--set function.data.undecodable=grey --set operation.control.bind=203.0.113.9 --set operation.control.port=9").code, 74);
  script("tessera-data", "echo '{\"schema\":1,\"samples\":100,\"bad\":[]}'");
  const Outcome few = up();
  EXPECT_EQ(few.code, 78);
  EXPECT_HAS(few.err, "100 samples, fewer than one step of 128");
  std::filesystem::remove(folder_ / "bin/tessera-trainer");
  const Outcome programs = up();
  EXPECT_EQ(programs.code, 69);
  EXPECT_HAS(programs.err, "tessera-trainer");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "runs/a"));
}

TEST_F(FakePrograms, TooLittleDiskIsSaidBefore) {
  write_text(folder_ / "a.yaml", "function:\n  model: {name: vit_giant}\n  steps: 5\noperation: {data_path: images, checkpoint: {keep_last: 1000000}}\n");
  const Outcome outcome = up();
  EXPECT_EQ(outcome.code, 74);
  EXPECT_HAS(outcome.err, "keep_last");
}

TEST_F(FakePrograms, ATakenPortIsSaidBefore) {
  FakeCoordinator taken;
  const std::string port = taken.url().substr(taken.url().rfind(':') + 1);
  const Outcome outcome = up("--set operation.http.port=" + port);
  EXPECT_EQ(outcome.code, 74);
  EXPECT_HAS(outcome.err, "port " + port + " of 127.0.0.1 is in use");
}

}  // namespace
}  // namespace tessera::cli
