// What a trainer does, for tests: asks for tiles over a socket, puts frames together, checks hashes.
#pragma once

#include <gtest/gtest.h>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/shared_memory.h"
#include "proto/channel.h"

namespace tessera::data {

struct Received {
  std::optional<proto::TileHeader> header;
  std::vector<uint8_t> pixels;
  int64_t bytes = 0;
  int frames = 0;
  std::optional<proto::TileError> error;
  bool whole() const { return error || (header && bytes == header->pixel_bytes); }
};

class TileClient {
 public:
  explicit TileClient(const std::string& address, int high_water_mark = 1000, const std::string& shared_host = "")
      : client_(std::move(*proto::Client::connect(address, {.cluster_id = "tessera", .run_id = "", .sender = "test", .max_message_bytes = int64_t{4} << 20, .high_water_mark = high_water_mark, .socket_buffer_bytes = 0}))), shared_host_(shared_host) {}

  uint64_t ask(Step step, TileIndex tile, int64_t credit_bytes) {
    const uint64_t id = next_++;
    send(proto::TileRequest{id, step, tile, credit_bytes, shared_host_});
    return id;
  }
  // Whether it lets go of shared memory when it has copied it, as a trainer does.
  void set_release(bool release) { release_ = release; }
  void cancel(uint64_t id) { send(proto::TileCancel{id}); }

  // Waits for the whole answer (or its error), keeping what arrives for others.
  Received take(uint64_t id, Millis limit_ms = 20'000) {
    const Millis end = monotonic_ms() + limit_ms;
    while (!received_[id].whole() && monotonic_ms() < end)
      if (auto incoming = client_.receive(100)) keep(*incoming);
    Received out = std::move(received_[id]);
    received_.erase(id);
    EXPECT_TRUE(out.whole()) << "no whole answer to request " << id << " in " << limit_ms << " ms";
    if (out.header && out.whole() && !out.error) {
      EXPECT_EQ(out.header->pixel_hash, hash_bytes(out.pixels.data(), out.pixels.size()));
      EXPECT_EQ(out.header->digest, proto::tile_digest(*out.header));
      EXPECT_EQ(out.frames, out.header->frame_count);
    }
    return out;
  }

  // Sends anything, gives back the first answer of type T.
  template <typename T>
  std::optional<std::pair<T, std::string>> call(const proto::Payload& payload, Millis limit_ms = 20'000) {
    EXPECT_TRUE(client_.send(payload));
    const Millis end = monotonic_ms() + limit_ms;
    while (monotonic_ms() < end) {
      auto incoming = client_.receive(100);
      if (!incoming) continue;
      if (auto* answer = std::get_if<T>(&incoming->envelope.payload)) return std::pair{std::move(*answer), std::move(incoming->raw)};
      keep(*incoming);
    }
    return std::nullopt;
  }

 private:
  // A client with a short queue has to wait for its own socket.
  void send(const proto::Payload& payload) {
    bool sent = false;
    for (const Millis end = monotonic_ms() + 5000; !sent && monotonic_ms() < end;) {
      sent = bool(client_.send(payload));
      if (!sent) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_TRUE(sent);
  }
  void keep(proto::Incoming& incoming) {
    auto& payload = incoming.envelope.payload;
    if (auto* header = std::get_if<proto::TileHeader>(&payload)) {
      Received& to = received_[header->request_id];
      to.pixels.resize(size_t(header->pixel_bytes));
      if (header->shared.pid != 0) {
        const auto from = views_.get(header->shared.pid, header->shared.fd, header->shared.nonce, header->pixel_bytes);
        ASSERT_TRUE(from) << from.error().message;
        std::copy(*from, *from + header->pixel_bytes, to.pixels.begin());
        to.bytes = header->pixel_bytes;
        if (release_) cancel(header->request_id);
      }
      to.header = std::move(*header);
    } else if (const auto* frame = std::get_if<proto::TileFrame>(&payload)) {
      Received& to = received_[frame->request_id];
      EXPECT_LE(incoming.raw.size(), size_t{1} << 20);
      ASSERT_EQ(frame->index, to.frames);
      ASSERT_LE(size_t(frame->offset) + incoming.raw.size(), to.pixels.size());
      std::copy(incoming.raw.begin(), incoming.raw.end(), to.pixels.begin() + frame->offset);
      to.bytes += int64_t(incoming.raw.size()), ++to.frames;
    } else if (auto* error = std::get_if<proto::TileError>(&payload)) {
      received_[error->request_id].error = std::move(*error);
    }
  }

  proto::Client client_;
  std::string shared_host_;
  SharedViews views_;
  bool release_ = true;
  uint64_t next_ = 1;
  std::map<uint64_t, Received> received_;
};

}  // namespace tessera::data
