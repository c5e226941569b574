// Memory between two processes of a host: found by pid, descriptor and nonce, and by nothing less.
#include "common/shared_memory.h"

#include <cstring>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace tessera {
namespace {

TEST(SharedMemory, WhatOneWritesTheOtherReads) {
  const auto buffer = SharedBuffer::create(100'000);
  ASSERT_TRUE(buffer) << buffer.error().message;
  const auto view = SharedView::open(getpid(), (*buffer)->descriptor(), (*buffer)->nonce(), 100'000);
  ASSERT_TRUE(view) << view.error().message;
  std::memset((*buffer)->data(), 7, 100'000);
  EXPECT_EQ((*view)->data()[0], 7);
  EXPECT_EQ((*view)->data()[99'999], 7);
  const SharedView& read = **view;
  buffer->get()->data()[5] = 9;
  EXPECT_EQ(read.data()[5], 9);
}

TEST(SharedMemory, OtherMemoryIsRefused) {
  const auto buffer = SharedBuffer::create(1000);
  const int descriptor = (*buffer)->descriptor();
  const uint64_t nonce = (*buffer)->nonce();
  EXPECT_FALSE(SharedView::open(getpid(), descriptor, nonce + 1, 1000)) << "another nonce: another process under that pid";
  EXPECT_FALSE(SharedView::open(getpid(), descriptor, nonce, 1001)) << "smaller than announced";
  EXPECT_FALSE(SharedView::open(getpid(), descriptor, nonce, -1));
  EXPECT_FALSE(SharedView::open(getpid(), 9999, nonce, 1000));
  EXPECT_FALSE(SharedView::open(0, descriptor, nonce, 1000));
  EXPECT_FALSE(SharedView::open(-1, descriptor, nonce, 1000));
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_FALSE(SharedView::open(getpid(), ends[0], nonce, 0)) << "a pipe, which must not be waited for";
  ::close(ends[0]), ::close(ends[1]);
  char form[] = "/tmp/tessera-shared-XXXXXX";
  const int file = ::mkstemp(form);
  ASSERT_EQ(::ftruncate(file, 10'000), 0);
  EXPECT_FALSE(SharedView::open(getpid(), file, nonce, 1000)) << "a file that may be cut";
  ::close(file), ::unlink(form);
}

TEST(SharedMemory, NoReaderIsHurtByTheCreatorsEnd) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto buffer = SharedBuffer::create(50'000);
    std::memset((*buffer)->data(), 3, 50'000);
    const uint64_t told[2] = {uint64_t((*buffer)->descriptor()), (*buffer)->nonce()};
    if (::write(ends[1], told, sizeof told) != sizeof told) ::_exit(1);
    ::pause();
  }
  uint64_t told[2] = {};
  ASSERT_EQ(::read(ends[0], told, sizeof told), ssize_t(sizeof told));
  const auto view = SharedView::open(child, int32_t(told[0]), told[1], 50'000);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(ends[0]), ::close(ends[1]);
  ASSERT_TRUE(view) << view.error().message;
  EXPECT_EQ((*view)->data()[49'999], 3);
  EXPECT_FALSE(SharedView::open(child, int32_t(told[0]), told[1], 50'000)) << "nothing is left of it to be found";
}

TEST(SharedMemory, ViewsAreMappedOnceAndBounded) {
  std::vector<std::shared_ptr<SharedBuffer>> buffers;
  SharedViews views;
  for (size_t i = 0; i < 2 * SharedViews::kMost; ++i) {
    buffers.push_back(*SharedBuffer::create(1000));
    buffers.back()->data()[0] = uint8_t(i);
    const auto got = views.get(getpid(), buffers.back()->descriptor(), buffers.back()->nonce(), 1000);
    ASSERT_TRUE(got);
    EXPECT_EQ(**got, uint8_t(i));
    EXPECT_EQ(*views.get(getpid(), buffers.back()->descriptor(), buffers.back()->nonce(), 1000), *got);
  }
  EXPECT_EQ(**views.get(getpid(), buffers[0]->descriptor(), buffers[0]->nonce(), 1000), 0) << "mapped again";
}

}  // namespace
}  // namespace tessera
