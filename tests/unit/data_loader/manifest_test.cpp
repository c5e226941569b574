// The manifest's file, and what its digest covers.
#include "data_loader/dataset/manifest.h"

#include <cmath>
#include <limits>

#include "common/clock.h"
#include "tests/unit/data_loader/dataset_files.h"

namespace tessera::data {
namespace {

ManifestDraft small_draft(int64_t samples = 5) {
  ManifestDraft out;
  out.kind = "tar", out.source = "/somewhere/*.tar";
  out.label_names = {"class", "count"};
  out.class_names = {"a", "b"};
  out.files = {{"one.tar", 100, 7, FileRole::kShard}, {"two.tar", 200, 8, FileRole::kShard}};
  for (int64_t i = 0; i < samples; ++i) {
    const Hash128 hash = hash_bytes(std::to_string(i));
    out.samples.push_back({"key" + std::to_string(i), hash, {i * 512, 10 + i, uint32_t(i % 2), Codec::kOriginal, hash}, {double(i % 2), i == 1 ? std::nan("") : double(i)}});
  }
  out.block_starts = {0, samples / 2};
  out.bad = {{"key1", "is odd"}};
  return out;
}

std::shared_ptr<const Manifest> stored(const ManifestDraft& draft) {
  static TemporaryFolder folder;
  write_test_file(folder / "m", encode_manifest(draft));
  auto manifest = Manifest::load(folder / "m");
  EXPECT_TRUE(manifest) << manifest.error().message;
  return *manifest;
}

TEST(Manifest, KeepsWhatItWasGiven) {
  const ManifestDraft draft = small_draft();
  const auto manifest = stored(draft);
  ASSERT_EQ(manifest->sample_count(), 5);
  EXPECT_EQ(manifest->digest(), manifest_digest(draft));
  EXPECT_EQ(manifest->label_names(), draft.label_names);
  EXPECT_EQ(manifest->class_names(), draft.class_names);
  EXPECT_EQ(manifest->source(), draft.source);
  ASSERT_EQ(manifest->bad().size(), 1u);
  EXPECT_EQ(manifest->bad()[0].reason, "is odd");
  for (SampleId id = 0; id < 5; ++id) {
    const auto& sample = draft.samples[size_t(id)];
    EXPECT_EQ(manifest->key(id), sample.key);
    EXPECT_EQ(manifest->content_hash(id), sample.content_hash);
    EXPECT_EQ(manifest->stored(id).offset, sample.stored.offset);
    EXPECT_EQ(manifest->labels(id)[0], sample.labels[0]);
    EXPECT_EQ(std::isnan(manifest->labels(id)[1]), id == 1);
  }
  EXPECT_EQ(manifest->file_path(1), "two.tar");
  EXPECT_EQ(std::vector<int64_t>(manifest->block_starts().begin(), manifest->block_starts().end()), draft.block_starts);
}

TEST(Manifest, DigestCoversContentAndNotItsPlace) {
  const Hash128 base = manifest_digest(small_draft());
  const auto changed = [&](auto change) {
    ManifestDraft draft = small_draft();
    change(draft);
    return manifest_digest(draft);
  };
  EXPECT_NE(base, changed([](auto& d) { d.samples[2].key = "other"; }));
  EXPECT_NE(base, changed([](auto& d) { d.samples[2].labels[0] = 7; }));
  EXPECT_NE(base, changed([](auto& d) { d.samples[2].labels[0] = std::nan(""); }));
  EXPECT_NE(base, changed([](auto& d) { d.samples[2].content_hash.low ^= 1; }));
  EXPECT_NE(base, changed([](auto& d) { std::swap(d.samples[2], d.samples[3]); }));
  EXPECT_NE(base, changed([](auto& d) { d.block_starts[1] = 3; }));
  EXPECT_NE(base, changed([](auto& d) { d.label_names[1] = "number"; }));
  EXPECT_EQ(base, changed([](auto& d) { d.samples[2].stored = {99, 98, 0, Codec::kOriginal, {1, 2}}; }));
  EXPECT_EQ(base, changed([](auto& d) { d.files[0].path = "moved.tar", d.files[0].modified_ns = 1, d.source = "/elsewhere", d.kind = "folder", d.bad.clear(); }));
  EXPECT_EQ(base, changed([](auto& d) { d.samples[1].labels[1] = -std::numeric_limits<double>::quiet_NaN(); })) << "every NaN is the same missing label";
}

TEST(Manifest, EveryFlippedByteAndEveryCutIsRefused) {
  TemporaryFolder folder;
  const std::string whole = encode_manifest(small_draft());
  const auto refused = [&](const std::string& bytes) {
    write_test_file(folder / "m", bytes);
    const auto manifest = Manifest::load(folder / "m");
    return !manifest && manifest.error().code == ErrorCode::kFixData && manifest.error().message.find("tessera data index") != std::string::npos;
  };
  for (size_t byte = 0; byte < whole.size(); ++byte) {
    if (byte >= 12 && byte < 16) continue;  // reserved
    std::string bytes = whole;
    bytes[byte] ^= 0x10;
    EXPECT_TRUE(refused(bytes)) << "byte " << byte;
  }
  for (size_t size = 0; size < whole.size(); size += 7) EXPECT_TRUE(refused(whole.substr(0, size))) << "cut to " << size;
  EXPECT_TRUE(refused(whole + "x"));
}

// The size of ImageNet. The time is printed, not asserted: perf is recorded, never a test.
TEST(Manifest, OpensAnImageNetSizedManifest) {
  TemporaryFolder folder;
  ManifestDraft draft = small_draft(0);
  constexpr int64_t kSamples = 1'281'167;
  draft.bad.clear();
  draft.samples.reserve(kSamples);
  for (int64_t i = 0; i < kSamples; ++i) {
    const Hash128 hash{uint64_t(i), uint64_t(i) * 7};
    draft.samples.push_back({"n01440764/n01440764_" + std::to_string(i), hash, {i * 1024, 1000, uint32_t(i % 2), Codec::kOriginal, hash}, {double(i % 1000), 1.0}});
  }
  draft.block_starts = {0, kSamples / 2};
  write_test_file(folder / "m", encode_manifest(draft));
  const double begin = monotonic_seconds();
  const auto manifest = Manifest::load(folder / "m");
  const double seconds = monotonic_seconds() - begin;
  ASSERT_TRUE(manifest) << manifest.error().message;
  EXPECT_EQ((*manifest)->sample_count(), kSamples);
  EXPECT_EQ((*manifest)->key(kSamples - 1), "n01440764/n01440764_1281166");
  std::printf("1281167 samples opened in %.0f ms\n", seconds * 1e3);
}

}  // namespace
}  // namespace tessera::data
