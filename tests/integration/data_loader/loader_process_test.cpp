// tessera-loader as a process, with this test as its coordinator and its trainer; tessera-loader --standalone; tessera-data.
#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/version.h"
#include "data_loader/server/tile_maker.h"
#include "tests/integration/data_loader/tile_client.h"
#include "tests/unit/data_loader/dataset_files.h"

namespace tessera::data {
namespace {

// A child that is killed with the test.
class Process {
 public:
  Process(std::vector<std::string> words, const std::string& output) {
    pid_ = ::fork();
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int out = ::open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    ::dup2(out, 1), ::dup2(out, 2);
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  ~Process() {
    if (pid_ > 0) ::kill(pid_, SIGKILL), ::waitpid(pid_, nullptr, 0);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  void signal(int number) { ::kill(pid_, number); }
  pid_t pid() const { return pid_; }
  // The exit code; -1 when it does not end in time.
  int wait(Millis limit_ms = 20'000) {
    for (const Millis end = monotonic_ms() + limit_ms; monotonic_ms() < end; ::usleep(2000)) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) != pid_) continue;
      pid_ = -1;
      return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    return -1;
  }

 private:
  pid_t pid_ = -1;
};

std::string program(const char* name) { return std::string(TESSERA_BIN) + "/" + name; }

class LoaderProcess : public testing::Test {
 protected:
  void SetUp() override {
    function_.model.patch_size = 8, function_.model.image_size = 32;
    function_.batch.tile_size = 4, function_.batch.tiles = 2;
    function_.masks.min_keep = 0;
    ScenesOptions scenes;
    scenes.count = 20, scenes.size = 32;
    ASSERT_TRUE(make_scenes(folder_ / "d", scenes));
    proto::ChannelOptions channel;
    channel.sender = "coordinator", channel.run_id = "run-1";
    coordinator_ = std::make_unique<proto::Server>(std::move(*proto::Server::bind("127.0.0.1", 0, channel)));
  }
  std::unique_ptr<Process> loader(std::vector<std::string> more = {}) {
    std::vector<std::string> words{program("tessera-loader"), "--coordinator", "127.0.0.1:" + std::to_string(coordinator_->port()), "--name", "one"};
    words.insert(words.end(), more.begin(), more.end());
    return std::make_unique<Process>(words, folder_ / "log");
  }
  std::string log() const { return read_file(folder_ / "log").value_or(""); }

  // The next message of type T; others are passed over.
  template <typename T>
  std::optional<T> hear(Millis limit_ms = 20'000) {
    for (const Millis end = monotonic_ms() + limit_ms; monotonic_ms() < end;) {
      auto incoming = coordinator_->receive(100);
      if (!incoming) continue;
      peer_ = incoming->peer;
      if (auto* wanted = std::get_if<T>(&incoming->envelope.payload)) return std::move(*wanted);
    }
    ADD_FAILURE() << "did not hear from the loader; its log: " << log();
    return std::nullopt;
  }
  void welcome(const std::string& data_path) {
    proto::LoaderWelcome welcome;
    welcome.run_id = "run-1";
    welcome.function_yaml = print_function(function_);
    welcome.data_path = data_path;
    welcome.manifest_folder = folder_ / "manifests";
    welcome.loader_threads = 2;
    ASSERT_TRUE(coordinator_->send(peer_, welcome));
  }

  TemporaryFolder folder_;
  FunctionConfig function_;
  std::unique_ptr<proto::Server> coordinator_;
  std::string peer_;
};

TEST_F(LoaderProcess, ServesARunFromHelloToShutdown) {
  const auto process = loader();
  const auto hello = hear<proto::LoaderHello>();
  ASSERT_TRUE(hello);
  EXPECT_EQ(hello->name, "one");
  EXPECT_EQ(hello->pid, process->pid());
  EXPECT_EQ(hello->build.protocol, kProtocolVersion);
  welcome(folder_ / "d");
  const auto dataset = hear<proto::LoaderDataset>();
  ASSERT_TRUE(dataset);
  EXPECT_EQ(dataset->error, "");
  EXPECT_EQ(dataset->sample_count, 20);
  EXPECT_EQ(dataset->shard_count, 1);
  EXPECT_NE(dataset->decoder_fingerprint, "");
  ASSERT_TRUE(hear<proto::LoaderStatus>());

  OpenOptions options;
  options.data_path = folder_ / "d";
  const auto opened = open_dataset(options);
  EXPECT_EQ((*opened)->manifest->digest(), dataset->manifest_digest);
  TileMaker maker = std::move(*TileMaker::create(*opened, function_));
  TileClient trainer(hello->data_address);
  for (Step step = 0; step < 4; ++step) {
    const Received got = trainer.take(trainer.ask(step, 1, tile_pixel_bytes(function_)));
    ASSERT_TRUE(got.header);
    EXPECT_EQ(got.header->digest, maker.make(step, 1)->header.digest) << step;
  }
  // A coordinator that forgot it (a restart) asks for a new hello and gets the dataset again; tiles go on all the while.
  ASSERT_TRUE(coordinator_->send(peer_, proto::Reintroduce{}));
  ASSERT_TRUE(hear<proto::LoaderHello>());
  welcome(folder_ / "d");
  const auto again = hear<proto::LoaderDataset>();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->manifest_digest, dataset->manifest_digest);
  EXPECT_TRUE(trainer.take(trainer.ask(1, 0, tile_pixel_bytes(function_))).header);
  ASSERT_TRUE(coordinator_->send(peer_, proto::Shutdown{"the run is over", 0}));
  EXPECT_EQ(process->wait(), 0) << log();
}

TEST_F(LoaderProcess, SaysWhyItCannotServe) {
  const auto process = loader({"--data", folder_ / "no-such-folder"});
  ASSERT_TRUE(hear<proto::LoaderHello>());
  welcome(folder_ / "d");
  const auto missing = hear<proto::LoaderDataset>();
  ASSERT_TRUE(missing);
  EXPECT_NE(missing->error.find("no-such-folder"), std::string::npos) << missing->error;
  EXPECT_EQ(missing->exit_code, exit_codes::kDataCorrupt);
  ASSERT_TRUE(coordinator_->send(peer_, proto::Refused{"no data", exit_codes::kDataCorrupt}));
  EXPECT_EQ(process->wait(), exit_codes::kDataCorrupt);
}

TEST_F(LoaderProcess, RefusesAnotherDataset) {
  function_.data.manifest_digest = std::string(32, 'b');
  const auto process = loader();
  ASSERT_TRUE(hear<proto::LoaderHello>());
  welcome(folder_ / "d");
  const auto other = hear<proto::LoaderDataset>();
  ASSERT_TRUE(other);
  EXPECT_NE(other->error.find(std::string(32, 'b')), std::string::npos);
  EXPECT_EQ(other->exit_code, exit_codes::kConfig);
}

TEST_F(LoaderProcess, LeavesOnSigterm) {
  const auto process = loader();
  ASSERT_TRUE(hear<proto::LoaderHello>());
  process->signal(SIGTERM);
  EXPECT_TRUE(hear<proto::Goodbye>());
  EXPECT_EQ(process->wait(), 0);
}

TEST_F(LoaderProcess, StandaloneServesWholeImagesAndEndsOnSigterm) {
  const std::string address_file = folder_ / "address";
  const double begin = monotonic_seconds();
  Process process({program("tessera-loader"), "--standalone", "--data", folder_ / "d", "--address-file", address_file, "--threads", "2"}, folder_ / "log");
  while (!std::filesystem::exists(address_file) && monotonic_seconds() - begin < 20) ::usleep(1000);
  std::printf("tessera-loader --standalone serves after %.0f ms, an index of 20 images included\n", (monotonic_seconds() - begin) * 1e3);
  const auto address = nlohmann::json::parse(*read_file(address_file));
  EXPECT_EQ(address["samples"], 20);
  TileClient client(address["data_address"].get<std::string>());
  const auto info = client.call<proto::DatasetInfo>(proto::DatasetRequest{});
  ASSERT_TRUE(info);
  EXPECT_EQ(to_hex(info->first.manifest_digest), address["manifest_digest"].get<std::string>());
  const auto samples = client.call<proto::SampleTile>(proto::SampleRequest{1, {0, 19}, 32});
  ASSERT_TRUE(samples);
  EXPECT_EQ(samples->second.size(), size_t(2 * 32 * 32 * 3));
  process.signal(SIGTERM);
  EXPECT_EQ(process.wait(), 0);
}

// Its parent is a shell that is killed: the loader ends too.
TEST_F(LoaderProcess, StandaloneEndsWithItsParent) {
  const std::string address_file = folder_ / "address";
  Process shell({"/bin/sh", "-c", "\"$0\" --standalone --data \"$1\" --address-file \"$2\" & wait", program("tessera-loader"), folder_ / "d", address_file}, folder_ / "log");
  for (const double begin = monotonic_seconds(); !std::filesystem::exists(address_file) && monotonic_seconds() - begin < 20;) ::usleep(1000);
  ASSERT_TRUE(std::filesystem::exists(address_file)) << log();
  const std::string stat = "/proc/" + std::to_string(nlohmann::json::parse(*read_file(address_file))["pid"].get<int>()) + "/stat";
  const auto alive = [&] {
    std::ifstream file(stat);
    std::string pid, name, state;
    return bool(file >> pid >> name >> state) && state != "Z";
  };
  EXPECT_TRUE(alive());
  shell.signal(SIGKILL);
  for (const double begin = monotonic_seconds(); alive() && monotonic_seconds() - begin < 10;) ::usleep(1000);
  EXPECT_FALSE(alive());
}

TEST_F(LoaderProcess, WrongFlagsAreUsageErrors) {
  EXPECT_EQ(Process({program("tessera-loader"), "--no-such-flag"}, folder_ / "log").wait(), exit_codes::kUsage);
  EXPECT_EQ(Process({program("tessera-loader")}, folder_ / "log").wait(), exit_codes::kUsage);
  EXPECT_NE(log().find("--coordinator"), std::string::npos);
  EXPECT_EQ(Process({program("tessera-loader"), "--standalone", "--data", "x"}, folder_ / "log").wait(), exit_codes::kUsage);
  EXPECT_EQ(Process({program("tessera-data"), "index"}, folder_ / "log").wait(), exit_codes::kUsage);
}

nlohmann::json last_line(const std::string& text) {
  const size_t end = text.find_last_not_of('\n');
  return nlohmann::json::parse(text.substr(text.rfind('\n', end) + 1, end - text.rfind('\n', end)), nullptr, false);
}

TEST_F(LoaderProcess, TesseraDataTellsInJson) {
  EXPECT_EQ(Process({program("tessera-data"), "make-scenes", "--out", folder_ / "s", "--count", "30", "--size", "32", "--shard-size", "10", "--json"}, folder_ / "log").wait(), 0);
  const auto made = last_line(log());
  EXPECT_EQ(made["samples"], 30);
  EXPECT_EQ(made["shards"], 3);
  EXPECT_EQ(made["schema"], 1);
  EXPECT_EQ(Process({program("tessera-data"), "index", folder_ / "s", "--json"}, folder_ / "log").wait(), 0);
  EXPECT_EQ(last_line(log())["manifest_digest"], made["manifest_digest"]);
  EXPECT_EQ(Process({program("tessera-data"), "verify", folder_ / "s", "--json"}, folder_ / "log").wait(), 0);
  const std::string shard = folder_ / "s/scenes-000001.tar";
  std::string bytes = *read_file(shard);
  bytes[700] ^= 1;  // inside the first image
  const auto time = std::filesystem::last_write_time(shard);
  write_test_file(shard, bytes);
  std::filesystem::last_write_time(shard, time);  // silent damage: the manifest still looks fresh
  EXPECT_EQ(Process({program("tessera-data"), "verify", folder_ / "s", "--json"}, folder_ / "log").wait(), exit_codes::kDataCorrupt);
  const auto bad = last_line(log());
  ASSERT_EQ(bad["bad"].size(), 1u);
  EXPECT_EQ(bad["bad"][0]["key"], "00000010");
  EXPECT_EQ(Process({program("tessera-data"), "index", folder_ / "nowhere", "--json"}, folder_ / "log").wait(), exit_codes::kDataCorrupt);
}

}  // namespace
}  // namespace tessera::data
