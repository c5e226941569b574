// The unpickler against hostile bytes: what it refuses, where it says so, and that no mutation makes it crash or read
// outside the file.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/unit/import/small_archive.h"
#include "worker/import/pickle.h"

namespace tessera::import {
namespace {

using test::SmallArchive;

std::string error_of(std::string_view pickle) {
  const SmallArchive file({{"data.pkl", std::string(pickle)}, {"data/0", std::string(24, '\x01')}});
  const auto archive = ZipArchive::open(file.path());
  EXPECT_TRUE(archive) << archive.error().message;
  const auto value = read_pickle(*archive);
  return value ? "" : value.error().message;
}

std::string proto(const std::string& rest) { return "\x80\x02" + rest; }
std::string number(int64_t value) {
  std::string out = "\x8a\x08";
  out.append(reinterpret_cast<const char*>(&value), 8);
  return out;
}
std::string text(const std::string& value) {
  const auto size = uint32_t(value.size());
  std::string out = "X";
  out.append(reinterpret_cast<const char*>(&size), 4);
  return out + value;
}
// A float tensor over record data/KEY.
std::string tensor(const std::string& key, int64_t elements, int64_t offset, int64_t rows, int64_t stride) {
  return "ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + "ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(elements) + "tQ" + number(offset) + "(" +
         number(rows) + "t(" + number(stride) + "t\x89" + "ccollections\nOrderedDict\n)RtR";
}

void expect_refused(const std::string& pickle, const std::vector<std::string>& words) {
  const std::string message = error_of(pickle);
  ASSERT_FALSE(message.empty()) << "accepted";
  for (const auto& word : words) EXPECT_NE(message.find(word), std::string::npos) << message;
}

TEST(Pickle, PlainValues) {
  const SmallArchive file({{"data.pkl", proto("}(" + text("a") + "K\x05" + text("b") + "](K\x01N\x88" "e" + text("c") + "J\xff\xff\xff\xff" + text("d") + "G?\xf8" + std::string(6, '\0') + "u.")}});
  const auto archive = ZipArchive::open(file.path());
  ASSERT_TRUE(archive);
  const auto value = read_pickle(*archive);
  ASSERT_TRUE(value) << value.error().message;
  EXPECT_EQ(*(*value)->get("a")->as<int64_t>(), 5);
  EXPECT_EQ((*value)->get("b")->as<List>()->items.size(), 3u);
  EXPECT_EQ(*(*value)->get("c")->as<int64_t>(), -1);
  EXPECT_EQ(*(*value)->get("d")->as<double>(), 1.5);
  EXPECT_EQ((*value)->get("e"), nullptr);
}

TEST(Pickle, GlobalsThatCouldRunAreRefusedWithByteAndOpcode) {
  expect_refused(proto("cos\nsystem\n(" + text("true") + "tR."), {"byte 2", "GLOBAL", "os.system"});
  expect_refused(proto("c__builtin__\neval\n(" + text("1") + "tR."), {"GLOBAL", "__builtin__.eval"});
  expect_refused(proto("N" + text("posix") + text("system") + "\x93."), {"STACK_GLOBAL", "posix.system"});
  expect_refused(proto("(S'true'\nios\nsystem\n."), {"opcode", "byte 3"});
  expect_refused(proto("(ios\nsystem\n."), {"INST"});
  expect_refused(proto(")\x81."), {"NEWOBJ"});
  expect_refused(proto("ctorch\nFloatStorage\n)R."), {"REDUCE", "torch FloatStorage"});
  expect_refused(proto("}}b."), {"BUILD"});
}

TEST(Pickle, TensorsOutsideTheirStorageAreRefused) {
  EXPECT_EQ(error_of(proto(tensor("0", 6, 0, 6, 1) + ".")), "");
  EXPECT_EQ(error_of(proto(tensor("0", 6, 1, 3, 2) + ".")).find("outside"), std::string::npos);
  expect_refused(proto(tensor("0", 6, 1, 6, 1) + "."), {"REDUCE", "outside its storage"});
  expect_refused(proto(tensor("0", 6, 0, 2, 6) + "."), {"outside its storage"});
  expect_refused(proto(tensor("0", 6, -1, 1, 1) + "."), {"outside its storage"});
  expect_refused(proto(tensor("0", 6, 0, -1, 1) + "."), {"negative"});
  expect_refused(proto(tensor("0", 6, 0, int64_t{1} << 62, 1) + "."), {"more elements"});
  expect_refused(proto(tensor("0", 6, int64_t{1} << 62, 2, int64_t{1} << 62) + "."), {"outside"});
  expect_refused(proto(tensor("0", 7, 0, 1, 1) + "."), {"BINPERSID", "24 bytes"});
  expect_refused(proto(tensor("../0", 6, 0, 1, 1) + "."), {"no record"});
}

TEST(Pickle, DamageIsNamed) {
  expect_refused("", {"byte 0", "ends"});
  expect_refused(proto(""), {"ends"});
  expect_refused("\x80\x01.", {"protocol 1"});
  expect_refused(proto("."), {"STOP", "empty"});
  expect_refused(proto("NN."), {"left over"});
  expect_refused(proto("h\x07."), {"BINGET", "memo 7"});
  expect_refused(proto("t."), {"no mark"});
  expect_refused(proto("(u."), {"stack is empty"});
  expect_refused(proto("N(u."), {"a dict is expected"});
  expect_refused(proto("}(Nu."), {"key without a value"});
  expect_refused(proto("X\xff\xff\xff\xff" "a."), {"BINUNICODE", "ends"});
  expect_refused(proto("\x8a\x09" + std::string(9, '\x01') + "."), {"LONG1", "9 bytes"});
  expect_refused(proto("]q\x01h\x01" "a."), {"cycle"});
  expect_refused(proto(std::string(200, ']') + std::string(199, 'a') + "."), {"nested"});
}

// xorshift: the same mutations on every machine.
struct Bits {
  uint64_t state;
  uint64_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
  }
};

TEST(Pickle, MutationsNeverCrash) {
  const std::string good = proto("}q\x01(" + text("encoder") + "ccollections\nOrderedDict\n)Rq\x02(" + text("w") + tensor("0", 6, 0, 3, 2) + text("v") + tensor("0", 6, 1, 2, 1) + "u}(" + text("_metadata") +
                                 "}" + "ub" + text("opt") + "}(K\x01}(" + text("step") + tensor("0", 6, 5, 1, 1) + "uu" + text("list") + "](K\x01M\x01\x02N\x88\x89" + "e" + text("lr") + "G?\xf8" +
                                 std::string(6, '\0') + text("t") + "K\x01K\x02\x86q\x03h\x03h\x01" "0." );
  const SmallArchive file({{"data.pkl", good}, {"data/0", std::string(24, '\x01')}});
  const auto archive = ZipArchive::open(file.path());
  ASSERT_TRUE(archive);
  Bits bits{0x9E3779B97F4A7C15ull};
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string mutated = good;
    for (uint64_t edits = 1 + bits.next() % 4; edits-- > 0;) {
      const size_t at = bits.next() % mutated.size();
      switch (bits.next() % 4) {
        case 0: mutated[at] = char(bits.next()); break;
        case 1: mutated.erase(at, 1 + bits.next() % 5); break;
        case 2: mutated.insert(at, mutated, bits.next() % mutated.size(), 1 + bits.next() % 20); break;
        default: mutated.resize(at); break;
      }
      if (mutated.empty()) mutated = "N";
    }
    const auto value = parse_pickle(mutated, *archive);
    if (value) continue;
    ++refused;
    EXPECT_NE(value.error().message.find("data.pkl byte "), std::string::npos);
  }
  EXPECT_GT(refused, 10000);
}

}  // namespace
}  // namespace tessera::import
