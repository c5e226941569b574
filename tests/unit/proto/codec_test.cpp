#include "proto/codec.h"

#include <gtest/gtest.h>

#include <set>

#include "fields.h"

namespace tessera::proto::test {
namespace {

TEST(Codec, EveryPayloadRoundTripsWithAnyFields) {
  std::mt19937_64 draw(1);
  for (size_t index = 1; index < kPayloads; ++index)
    for (int round = 0; round < 60; ++round) {
      const Envelope sent = random_envelope(index, draw);
      const auto received = decode(encode(sent));
      ASSERT_TRUE(received) << payload_name(sent.payload) << ": " << received.error().message;
      EXPECT_TRUE(same_payload(sent.payload, received->payload)) << payload_name(sent.payload) << " round " << round;
      EXPECT_EQ(sent.protocol, received->protocol);
      EXPECT_EQ(sent.cluster_id, received->cluster_id);
      EXPECT_EQ(sent.run_id, received->run_id);
      EXPECT_EQ(sent.sender, received->sender);
      EXPECT_EQ(sent.incarnation, received->incarnation);
      EXPECT_EQ(sent.sequence, received->sequence);
    }
}

TEST(Codec, DefaultsRoundTrip) {
  for (const Payload& payload : {Payload{TrainerHello{}}, Payload{WorldDirective{}}, Payload{StepDone{}}, Payload{TrainerStatus{}}, Payload{ShardAssignment{}}, Payload{DaemonStatus{}}}) {
    const auto received = decode(encode({1, "", "", "", 0, 0, payload}));
    ASSERT_TRUE(received) << payload_name(payload);
    EXPECT_TRUE(same_payload(payload, received->payload)) << payload_name(payload);
  }
}

TEST(Codec, NamesAreDistinct) {
  std::mt19937_64 draw(2);
  std::set<std::string> names;
  for (size_t index = 0; index < kPayloads; ++index) names.insert(payload_name(random_payload(index, draw)));
  EXPECT_EQ(names.size(), kPayloads);
  EXPECT_STREQ(payload_name(StepDone{}), "StepDone");
}

TEST(Codec, NothingIsNoMessage) {
  EXPECT_FALSE(decode(""));
  EXPECT_FALSE(decode(encode(Envelope{})));
  const auto text = decode("GET / HTTP/1.1\r\n\r\n");
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code, ErrorCode::kFixData);
}

// Whatever decode() lets through keeps the promises that receivers rely on.
void expect_promises(const Envelope& e) {
  if (const auto* h = std::get_if<TileHeader>(&e.payload)) {
    ASSERT_EQ(h->crops.size(), h->sample_ids.size());
    ASSERT_EQ(h->pixel_bytes, int64_t(h->sample_ids.size()) * h->image_size * h->image_size * 3);
    for (const auto* lists : {&h->contexts, &h->targets})
      for (const auto& list : *lists) {
        ASSERT_EQ(list.size(), h->sample_ids.size() * size_t(lists == &h->contexts ? h->context_length : h->target_length));
        for (const uint16_t patch : list) ASSERT_LT(patch, h->grid * h->grid);
      }
  } else if (const auto* t = std::get_if<SampleTile>(&e.payload)) {
    ASSERT_EQ(t->keys.size(), t->sample_ids.size());
    ASSERT_EQ(t->labels.size(), t->sample_ids.size() * t->label_names.size());
  } else if (const auto* s = std::get_if<TrainerStatus>(&e.payload)) {
    ASSERT_TRUE(int32_t(s->phase) >= 0 && s->phase <= Phase::kFinished);
  } else if (const auto* w = std::get_if<WorldStart>(&e.payload)) {
    for (size_t i = 0; i < w->members.size(); ++i) ASSERT_EQ(w->members[i].rank, Rank(i));
  }
}

TEST(Codec, DamagedMessagesNeverCrashAndKeepThePromises) {
  std::mt19937_64 draw(3);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = encode(random_envelope(1 + draw() % (kPayloads - 1), draw));
    for (int change = int(draw() % 4); change >= 0 && !bytes.empty(); --change) {
      const size_t at = draw() % bytes.size();
      switch (draw() % 5) {
        case 0: bytes[at] = char(draw()); break;
        case 1: bytes[at] = char(bytes[at] ^ 1 << draw() % 8); break;
        case 2: bytes.resize(at); break;
        case 3: bytes.insert(at, bytes.substr(draw() % bytes.size(), draw() % 20)); break;
        default: bytes.erase(at, 1 + draw() % 5);
      }
    }
    const auto message = decode(bytes);
    if (!message) {
      ++refused;
      EXPECT_EQ(message.error().code, ErrorCode::kFixData);
      continue;
    }
    ++accepted;
    expect_promises(*message);
    const auto again = decode(encode(*message));
    ASSERT_TRUE(again) << "round " << round << ": " << again.error().message;
    ASSERT_TRUE(same_payload(message->payload, again->payload)) << payload_name(message->payload) << " round " << round;
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 1000);
}

TEST(Codec, RandomBytesNeverCrash) {
  std::mt19937_64 draw(4);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes(draw() % 200, '\0');
    for (char& c : bytes) c = char(draw());
    if (const auto message = decode(bytes)) expect_promises(*message);
  }
}

// Each breach on its own, so that no check can be lost unseen.
template <typename T, typename Change>
void expect_refused(Change change, const char* what) {
  std::mt19937_64 draw(5);
  T message;
  do {
    message = T{};
    fill(message, draw), make_valid(message, draw);
  } while ([&] {
    if constexpr (std::is_same_v<T, TileHeader>) return message.contexts.empty() || message.targets.empty() || message.context_length == 0 || message.target_length == 0;
    if constexpr (std::is_same_v<T, WorldStart>) return message.members.size() < 2;
    if constexpr (std::is_same_v<T, SampleTile>) return message.sample_ids.empty();
    if constexpr (std::is_same_v<T, SampleRequest>) return message.sample_ids.empty();
    if constexpr (std::is_same_v<T, ShardAssignment>) return message.loaders.empty();
    return false;
  }());
  ASSERT_TRUE(decode(encode({1, "", "", "", 0, 0, message}))) << what;
  change(message);
  const auto result = decode(encode({1, "", "", "", 0, 0, message}));
  ASSERT_FALSE(result) << what;
  EXPECT_NE(result.error().message.find(payload_name(message)), std::string::npos) << result.error().message;
}

TEST(Codec, FieldsOutOfRangeAreRefused) {
  expect_refused<TileHeader>([](auto& h) { h.crops.pop_back(); }, "crops");
  expect_refused<TileHeader>([](auto& h) { h.sample_ids.clear(), h.crops.clear(), h.pixel_bytes = 0; }, "no samples");
  expect_refused<TileHeader>([](auto& h) { h.step = -1; }, "step");
  expect_refused<TileHeader>([](auto& h) { h.frame_count = -1; }, "frames");
  expect_refused<TileHeader>([](auto& h) { h.pixel_bytes -= 1; }, "pixels");
  expect_refused<TileHeader>([](auto& h) { h.image_size = 1 << 30; }, "image size");
  expect_refused<TileHeader>([](auto& h) { h.grid = 0; }, "grid");
  expect_refused<TileHeader>([](auto& h) { h.context_length += 1; }, "context length");
  expect_refused<TileHeader>([](auto& h) { h.target_length -= 1; }, "target length");
  expect_refused<TileHeader>([](auto& h) { h.contexts[0][0] = uint16_t(h.grid * h.grid); }, "patch");
  expect_refused<TileHeader>([](auto& h) { h.targets[0].pop_back(); }, "short list");
  expect_refused<SampleTile>([](auto& t) { t.keys.pop_back(); }, "keys");
  expect_refused<SampleTile>([](auto& t) { t.labels.push_back(0); }, "labels");
  expect_refused<TrainerStatus>([](auto& s) { s.phase = Phase(13); }, "phase");
  expect_refused<TrainerStatus>([](auto& s) { s.phase = Phase(-1); }, "phase");
  expect_refused<WorldStart>([](auto& w) { w.source = StateSource(3); }, "source");
  expect_refused<WorldStart>([](auto& w) { std::swap(w.members[0], w.members[1]); }, "rank order");
  expect_refused<WorldStart>([](auto& w) { w.source_rank = Rank(w.members.size()); }, "source rank");
  expect_refused<WorldStart>([](auto& w) { w.start_step = -1; }, "start");
  expect_refused<TileRequest>([](auto& r) { r.credit_bytes = -1; }, "credit");
  expect_refused<TileFrame>([](auto& f) { f.offset = -1; }, "offset");
  expect_refused<SampleRequest>([](auto& r) { r.image_size = 0; }, "image size");
  expect_refused<SampleRequest>([](auto& r) { r.sample_ids[0] = -1; }, "sample");
  expect_refused<LoaderDataset>([](auto& d) { d.shard_count = -1; }, "shards");
  expect_refused<DatasetInfo>([](auto& d) { d.sample_count = -1; }, "samples");
  expect_refused<ShardAssignment>([](auto& a) { a.loaders[0].first_shard = a.loaders[0].last_shard + 1; }, "share");
  expect_refused<StepDone>([](auto& s) { s.step = -1; }, "step");
  expect_refused<CheckpointFile>([](auto& f) { f.rank = f.world_size; }, "rank");
}

// File names need not be UTF-8; a failure that quotes one must arrive, and keys must come as they are.
TEST(Codec, NamesThatAreNotUtf8Arrive) {
  const auto sent_back = [](const Payload& payload) {
    auto received = decode(encode({1, "", "", "", 0, 0, payload}));
    EXPECT_TRUE(received) << payload_name(payload);
    return received ? received->payload : Payload{};
  };
  SampleTile tile;
  tile.sample_ids = {1}, tile.keys = {"caf\xe9.jpg"};
  EXPECT_TRUE(same_payload(sent_back(tile), tile));
  const std::vector<std::pair<std::string, std::string>> texts{
      {"caf\xe9.jpg", "caf?.jpg"}, {"caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"}, {"\xc0\xaf", "??"}, {"\xed\xa0\x80", "???"}, {"\xf4\x90\x80\x80", "????"}, {"end\xe2\x82", "end??"}, {std::string("a\0b", 3), std::string("a\0b", 3)}};
  for (const auto& [text, expected] : texts) {
    EXPECT_EQ(std::get<TileError>(sent_back(TileError{1, text, 65})).reason, expected);
    EXPECT_EQ(std::get<LoaderDataset>(sent_back(LoaderDataset{{}, 0, 0, "", text, 65})).error, expected);
    EXPECT_EQ(std::get<CheckpointFailed>(sent_back(CheckpointFailed{{}, 0, text})).reason, expected);
    EXPECT_EQ(std::get<TrainerExited>(sent_back(TrainerExited{"w", 1, 1, 0, text, false})).cause, expected);
  }
}

// Masks travel as bitmaps and corners; every list comes back as it was, also those that are neither.
TEST(Codec, MasksComeBackWhateverTheirForm) {
  const auto back = [](const TileHeader& header) { return std::get<TileHeader>(decode(encode({1, "", "", "", 0, 0, header}))->payload); };
  TileHeader header;
  header.image_size = 224, header.grid = 14, header.sample_ids = {5, 6}, header.crops.resize(2), header.pixel_bytes = 2 * 224 * 224 * 3;
  header.target_length = 6, header.context_length = 5;
  const std::vector<std::vector<uint16_t>> targets{
      {0, 1, 2, 14, 15, 16, 179, 180, 181, 193, 194, 195},   // 2 x 3, the second in the last corner
      {0, 1, 14, 15, 28, 29, 3, 4, 17, 18, 31, 32},          // 3 x 2
      {0, 1, 2, 3, 4, 5, 190, 191, 192, 193, 194, 195},      // 1 x 6
      {0, 14, 28, 42, 56, 70, 13, 27, 41, 55, 69, 83},       // 6 x 1
      {0, 1, 2, 14, 15, 16, 0, 1, 14, 15, 28, 29},           // rectangles of two sizes: bitmaps
      {11, 12, 13, 14, 15, 16, 0, 1, 2, 14, 15, 16},         // a run over the edge of a row is no rectangle
      {5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0},                  // not ascending: as they are
      {0, 1, 2, 3, 195, 194, 7, 8, 9, 10, 11, 12}};
  header.targets = targets;
  header.contexts = {{0, 2, 9, 100, 195, 1, 2, 3, 5, 8}};
  EXPECT_EQ(back(header).targets, targets);
  EXPECT_EQ(back(header).contexts, header.contexts);
  header.grid = 14, header.target_length = 28, header.targets = {std::vector<uint16_t>(56)};
  for (uint16_t i = 0; i < 28; ++i) header.targets[0][i] = i, header.targets[0][28 + i] = uint16_t(14 + i);  // whole rows
  EXPECT_EQ(back(header).targets, header.targets);
}

TEST(Codec, MasksTakeFewBytes) {
  TileHeader header;
  const int64_t images = 64;
  header.image_size = 224, header.grid = 14, header.context_length = 70, header.target_length = 42;
  header.pixel_bytes = images * 224 * 224 * 3;
  header.targets.resize(4), header.contexts.resize(1);
  for (int64_t i = 0; i < images; ++i) {
    header.sample_ids.push_back(1'000'000 + i), header.crops.push_back({100, 100, 300, 300, true});
    for (auto& list : header.targets)
      for (int row = 0; row < 6; ++row)
        for (int column = 0; column < 7; ++column) list.push_back(uint16_t((i % 8 + row) * 14 + i % 5 + column));
    for (uint16_t k = 0; k < 70; ++k) header.contexts[0].push_back(uint16_t(2 * k + i % 50));
  }
  const size_t bytes = encode({1, "", "", "", 0, 0, header}).size();
  EXPECT_LT(bytes, size_t(images) * 64) << "an image's part of a tile's header";
}

// Bitmaps and rectangles that lie about their size are refused, and cost no memory first.
TEST(Codec, MasksThatLieAreRefused) {
  TileHeader header;
  header.image_size = 224, header.grid = 14, header.sample_ids = {5, 6}, header.crops.resize(2), header.pixel_bytes = 2 * 224 * 224 * 3;
  header.target_length = 6, header.context_length = 5;
  header.targets = {{0, 1, 2, 14, 15, 16, 179, 180, 181, 193, 194, 195}}, header.contexts = {{0, 2, 9, 100, 195, 1, 2, 3, 5, 8}};
  const std::string good = encode({1, "", "", "", 0, 0, header});
  int refused = 0;
  for (size_t at = 0; at < good.size(); ++at)
    for (const int bit : {0, 3, 7}) {
      std::string bytes = good;
      bytes[at] = char(bytes[at] ^ 1 << bit);
      const auto read = decode(bytes);
      refused += !read;
      const auto* tile = read ? std::get_if<TileHeader>(&read->payload) : nullptr;
      if (!tile) continue;
      for (const auto& list : tile->targets) { EXPECT_EQ(list.size(), tile->sample_ids.size() * size_t(tile->target_length)); }
    }
  EXPECT_GT(refused, 20);
}

TEST(TileDigest, CoversWhatDecidesTheBatchAndNothingElse) {
  std::mt19937_64 draw(6);
  TileHeader header;
  do fill(header, draw), make_valid(header, draw);
  while (header.contexts.empty() || header.targets.empty() || header.context_length == 0 || header.target_length == 0 || header.grey_samples.empty());
  const Hash128 digest = tile_digest(header);
  const auto changed = [&](auto change) {
    TileHeader other = header;
    change(other);
    return tile_digest(other) != digest;
  };
  EXPECT_TRUE(changed([](auto& h) { ++h.step; }));
  EXPECT_TRUE(changed([](auto& h) { ++h.tile; }));
  EXPECT_TRUE(changed([](auto& h) { ++h.epoch; }));
  EXPECT_TRUE(changed([](auto& h) { ++h.image_size; }));
  EXPECT_TRUE(changed([](auto& h) { ++h.grid; }));
  EXPECT_TRUE(changed([](auto& h) { ++h.context_length; }));
  EXPECT_TRUE(changed([](auto& h) { ++h.target_length; }));
  EXPECT_TRUE(changed([](auto& h) { ++h.sample_ids.back(); }));
  EXPECT_TRUE(changed([](auto& h) { ++h.crops.back().top; }));
  EXPECT_TRUE(changed([](auto& h) { ++h.crops.back().left; }));
  EXPECT_TRUE(changed([](auto& h) { ++h.crops.back().height; }));
  EXPECT_TRUE(changed([](auto& h) { ++h.crops.back().width; }));
  EXPECT_TRUE(changed([](auto& h) { h.crops.back().flip = !h.crops.back().flip; }));
  EXPECT_TRUE(changed([](auto& h) { ++h.contexts.back().back(); }));
  EXPECT_TRUE(changed([](auto& h) { ++h.targets.back().back(); }));
  EXPECT_TRUE(changed([](auto& h) { std::swap(h.contexts, h.targets); }));
  EXPECT_TRUE(changed([](auto& h) { h.contexts.emplace_back(); }));
  EXPECT_TRUE(changed([](auto& h) { h.grey_samples.pop_back(); }));
  EXPECT_TRUE(changed([](auto& h) { ++h.pixel_hash.low; }));
  EXPECT_FALSE(changed([](auto& h) { ++h.request_id; }));
  EXPECT_FALSE(changed([](auto& h) { ++h.digest.high; }));
  EXPECT_FALSE(changed([](auto& h) { ++h.frame_count; }));
  EXPECT_FALSE(changed([](auto& h) { ++h.shared.fd; }));
}

}  // namespace
}  // namespace tessera::proto::test
