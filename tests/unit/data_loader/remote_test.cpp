// Remote paths and the block cache, without a server (that is tests/integration/loader/test_sources.py).
#include <gtest/gtest.h>

#include "data_loader/dataset/remote/object_cache.h"
#include "data_loader/dataset/remote/remote_source.h"
#include "data_loader/dataset/remote/url.h"
#include "tests/unit/data_loader/dataset_files.h"

namespace tessera::data {
namespace {

TEST(Url, EscapesAsSignaturesWantIt) {
  EXPECT_EQ(percent_encode("a/b=c d+e~f%(1).tar", true), "a/b%3Dc%20d%2Be~f%25%281%29.tar");
  EXPECT_EQ(percent_encode("a/b", false), "a%2Fb");
  EXPECT_EQ(percent_encode("\xc3\xa9", true), "%C3%A9");
  std::string all;
  for (int c = 0; c < 256; ++c) all += char(c);
  EXPECT_EQ(percent_decode(percent_encode(all, true)), all);
  EXPECT_EQ(percent_decode("a+b%2Bc%zz%4"), "a b+c%zz%4");
}

TEST(Url, BracesBecomeNames) {
  EXPECT_EQ(*expand_braces("a.tar"), std::vector<std::string>{"a.tar"});
  EXPECT_EQ(*expand_braces("t-{008..011}.tar"), (std::vector<std::string>{"t-008.tar", "t-009.tar", "t-010.tar", "t-011.tar"}));
  EXPECT_EQ(*expand_braces("{0..1}/{3..4}"), (std::vector<std::string>{"0/3", "0/4", "1/3", "1/4"}));
  for (const char* bad : {"{", "{}", "{1}", "{1..}", "{a..b}", "{5..4}", "{0..99999999}", "{0..999999999999999999999}", "{0..9999}{0..9999}", "{-1..2}"}) {
    const auto names = expand_braces(bad);
    ASSERT_FALSE(names) << bad;
    EXPECT_EQ(exit_code_of(names.error()), exit_codes::kConfig);
  }
}

TEST(Url, SecretsAreNotPrinted) {
  EXPECT_EQ(printable_url("http://user:secret@host/a.tar?token=x"), "http://host/a.tar");
  EXPECT_EQ(printable_url("https://host/a@b.tar"), "https://host/a@b.tar");
  EXPECT_EQ(printable_url("s3://bucket/a.tar"), "s3://bucket/a.tar");
}

TEST(RemoteSource, PlacesNeedNoRequest) {
  const auto base = [](const char* path) { return place_remote_source(path)->base; };
  EXPECT_EQ(base("s3://b/p/q/"), "s3://b/p/q");
  EXPECT_EQ(base("s3://b"), "s3://b");
  EXPECT_EQ(base("s3://b/p/train-*.tar"), "s3://b/p");
  EXPECT_EQ(base("s3://b/p/x.tar"), "s3://b/p");
  EXPECT_EQ(base("https://h:80/p/{00..10}/x.tar"), "https://h:80/p");
  EXPECT_EQ(base("https://h/p/list.txt"), "https://h/p");
  for (const char* bad : {"s3://", "s3:///k", "http://", "http://h", "http://h/", "http://h/p/", "http://h/x.tar?q=1", "s3://b/{2..1}.tar"}) EXPECT_FALSE(place_remote_source(bad)) << bad;
}

TEST(ObjectCache, KeepsWhatWasUsedLast) {
  TemporaryFolder folder;
  const int64_t block = 10'000;
  const auto cache = *ObjectCache::open(folder / "c", 20 * block);
  const Hash128 object{1, 2};
  const auto content = [&](int64_t i) { return std::string(size_t(block), char('a' + i % 26)); };
  EXPECT_FALSE(cache->read(object, 0, block, 0, block));
  for (int64_t i = 0; i < 100; ++i) {
    cache->put(object, i, content(i));
    EXPECT_EQ(cache->read(object, 0, block, 5, 3).value_or(""), "aaa") << "used all the time, after block " << i;
    EXPECT_LE(cache->bytes_on_disk(), 21 * block);
  }
  EXPECT_EQ(cache->read(object, 99, block, 0, block), content(99));
  EXPECT_FALSE(cache->read(object, 1, block, 0, block)) << "long unused";
  EXPECT_FALSE(cache->read({1, 3}, 99, block, 0, block)) << "another object";
}

// By another process, or after a power cut: what this process has not checked is checked; a block of another size is none.
TEST(ObjectCache, DamageIsNoBlock) {
  TemporaryFolder folder;
  const Hash128 object{7, 7};
  const std::string content(5000, 'x');
  (*ObjectCache::open(folder / "c", 1 << 20))->put(object, 3, content);
  std::string path;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder / "c"))
    if (entry.path().extension() == ".block") path = entry.path();
  const std::string good = *read_file(path);
  for (const size_t at : {size_t{0}, size_t{2500}, size_t{4999}, good.size() - 1}) {
    std::string bad = good;
    bad[at] ^= 1;
    write_test_file(path, bad);
    const auto cache = *ObjectCache::open(folder / "c", 1 << 20);
    EXPECT_FALSE(cache->read(object, 3, 5000, 0, 10)) << at;
    EXPECT_FALSE(std::filesystem::exists(path)) << "it is removed";
    write_test_file(path, good);
    EXPECT_TRUE(cache->read(object, 3, 5000, 0, 10));
  }
  write_test_file(path, good.substr(0, 3000));
  EXPECT_FALSE((*ObjectCache::open(folder / "c", 1 << 20))->read(object, 3, 5000, 0, 10));
}

}  // namespace
}  // namespace tessera::data
