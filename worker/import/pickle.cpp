#include "worker/import/pickle.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <unordered_map>

#include "common/safetensors.h"

namespace tessera::import {
namespace {

constexpr int kMaxDepth = 64;
constexpr int64_t kMaxPickleBytes = int64_t{64} << 20, kMaxValues = 4'000'000;
constexpr size_t kMaxDimensions = 16;

const std::map<std::string, std::string> kStorageTypes{
    {"torch FloatStorage", "F32"}, {"torch DoubleStorage", "F64"}, {"torch HalfStorage", "F16"}, {"torch BFloat16Storage", "BF16"}, {"torch LongStorage", "I64"},
    {"torch IntStorage", "I32"},   {"torch ShortStorage", "I16"},  {"torch CharStorage", "I8"},  {"torch ByteStorage", "U8"},       {"torch BoolStorage", "BOOL"}};

const char* opcode_name(uint8_t op) {
  static const std::map<uint8_t, const char*> kNames{
      {0x80, "PROTO"},      {'.', "STOP"},        {'(', "MARK"},       {'}', "EMPTY_DICT"}, {']', "EMPTY_LIST"},  {')', "EMPTY_TUPLE"}, {'N', "NONE"},     {0x88, "NEWTRUE"},
      {0x89, "NEWFALSE"},   {'K', "BININT1"},     {'M', "BININT2"},    {'J', "BININT"},     {0x8a, "LONG1"},      {'G', "BINFLOAT"},    {'X', "BINUNICODE"}, {0x8c, "SHORT_BINUNICODE"},
      {'q', "BINPUT"},      {'r', "LONG_BINPUT"}, {'h', "BINGET"},     {'j', "LONG_BINGET"}, {0x94, "MEMOIZE"},   {0x85, "TUPLE1"},     {0x86, "TUPLE2"},  {0x87, "TUPLE3"},
      {'t', "TUPLE"},       {'a', "APPEND"},      {'e', "APPENDS"},    {'s', "SETITEM"},    {'u', "SETITEMS"},    {'c', "GLOBAL"},      {0x93, "STACK_GLOBAL"}, {'Q', "BINPERSID"},
      {'R', "REDUCE"},      {'b', "BUILD"},       {0x95, "FRAME"},     {'i', "INST"},       {'o', "OBJ"},         {0x81, "NEWOBJ"},     {0x92, "NEWOBJ_EX"}, {0x82, "EXT1"},
      {'P', "PERSID"},      {'B', "BINBYTES"},    {'C', "SHORT_BINBYTES"}, {'0', "POP"},    {'1', "POP_MARK"},    {'2', "DUP"},         {0x8f, "EMPTY_SET"}, {0x8b, "LONG4"}};
  const auto it = kNames.find(op);
  return it == kNames.end() ? nullptr : it->second;
}

struct Refused {
  std::string what;
};
[[noreturn]] void refuse(std::string what) { throw Refused{std::move(what)}; }

// The virtual machine. Refusals are thrown inside and become a Result at its one edge, parse_pickle.
class Machine {
 public:
  Machine(std::string_view bytes, const ZipArchive& archive) : bytes_(bytes), archive_(archive) {}

  ValuePtr run() {
    for (;;) {
      opcode_at_ = at_;
      opcode_ = byte();
      if (opcode_ == '.') {
        ValuePtr root = pop();
        if (!stack_.empty() || !marks_.empty()) refuse("values are left over");
        return root;
      }
      step(opcode_);
    }
  }
  std::string where() const {
    const char* name = opcode_name(opcode_);
    char number[16];
    std::snprintf(number, sizeof number, "0x%02x", opcode_);
    return "data.pkl byte " + std::to_string(opcode_at_) + ", opcode " + (name ? name : number) + ": ";
  }

 private:
  const uint8_t* take(uint64_t count) {
    if (count > bytes_.size() - at_) refuse("the pickle ends inside it");
    const auto* start = reinterpret_cast<const uint8_t*>(bytes_.data()) + at_;
    at_ += size_t(count);
    return start;
  }
  uint8_t byte() { return *take(1); }
  template <typename T>
  T little() {
    T value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text(uint64_t count) {
    const auto* start = take(count);
    return {reinterpret_cast<const char*>(start), size_t(count)};
  }
  std::string line() {
    const size_t end = bytes_.find('\n', at_);
    if (end == std::string_view::npos) refuse("the pickle ends inside it");
    std::string out(bytes_.substr(at_, end - at_));
    at_ = end + 1;
    return out;
  }

  ValuePtr pop() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) refuse("the stack is empty");
    ValuePtr value = std::move(stack_.back());
    stack_.pop_back();
    return value;
  }
  const ValuePtr& top() const {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) refuse("the stack is empty");
    return stack_.back();
  }
  std::vector<ValuePtr> pop_to_mark() {
    if (marks_.empty()) refuse("there is no mark");
    const size_t mark = marks_.back();
    marks_.pop_back();
    std::vector<ValuePtr> out(stack_.begin() + std::ptrdiff_t(mark), stack_.end());
    stack_.resize(mark);
    return out;
  }
  void push(ValuePtr value) { stack_.push_back(std::move(value)); }
  template <typename T>
  ValuePtr make(T data) {
    if (++values_ > kMaxValues) refuse("more than " + std::to_string(kMaxValues) + " values");
    auto value = std::make_shared<Value>();
    value->data = std::move(data);
    return value;
  }
  template <typename T>
  static T& expect(const ValuePtr& value, const char* what) {
    T* out = std::get_if<T>(&value->data);
    if (!out) refuse(std::string(what) + " is expected");
    return *out;
  }
  static void hold(Value& container, const ValuePtr& item) {
    if (container.held || item.get() == &container) refuse("a container changes after it was used (a cycle)");
    item->held = true;
    container.depth = std::max(container.depth, item->depth + 1);
    if (container.depth > kMaxDepth) refuse("nested deeper than " + std::to_string(kMaxDepth));
  }
  void tuple(std::vector<ValuePtr> items) {
    ValuePtr value = make(Tuple{});
    for (const auto& item : items) hold(*value, item);
    std::get<Tuple>(value->data).items = std::move(items);
    push(std::move(value));
  }
  void append(std::vector<ValuePtr> items) {
    const ValuePtr& list = top();
    auto& out = expect<List>(list, "a list");
    for (auto& item : items) hold(*list, item), out.items.push_back(std::move(item));
  }
  void set_items(std::vector<ValuePtr> items) {
    if (items.size() % 2) refuse("a key without a value");
    const ValuePtr& dict = top();
    auto& out = expect<Dict>(dict, "a dict");
    for (size_t i = 0; i < items.size(); i += 2) {
      hold(*dict, items[i]), hold(*dict, items[i + 1]);
      out.items.emplace_back(std::move(items[i]), std::move(items[i + 1]));
    }
  }
  void remember(uint64_t index) { memo_[index] = top(); }
  void recall(uint64_t index) {
    const auto it = memo_.find(index);
    if (it == memo_.end()) refuse("memo " + std::to_string(index) + " was never stored");
    if (++values_ > kMaxValues) refuse("more than " + std::to_string(kMaxValues) + " values");
    push(it->second);
  }

  void global(const std::string& name) {
    if (name != "collections OrderedDict" && name != "torch._utils _rebuild_tensor_v2" && name != "torch._utils _rebuild_parameter" &&
        !kStorageTypes.contains(name)) {
      std::string shown = name.substr(0, 100);
      for (char& c : shown) c = c == ' ' ? '.' : c >= 32 && c < 127 ? c : '?';
      refuse(shown + " is refused: only tensors, OrderedDict and plain values are read");
    }
    push(make(Global{name}));
  }
  void long_integer() {
    const size_t count = byte();
    if (count > 8) refuse("an integer of " + std::to_string(count) + " bytes; 8 is the most");
    const uint8_t* in = take(count);
    uint64_t value = 0;
    for (size_t i = 0; i < count; ++i) value |= uint64_t(in[i]) << (8 * i);
    if (count > 0 && count < 8 && (in[count - 1] & 0x80)) value |= ~uint64_t{0} << (8 * count);
    push(make(int64_t(value)));
  }
  void floating() {
    uint64_t bits = 0;
    const uint8_t* in = take(8);
    for (int i = 0; i < 8; ++i) bits = bits << 8 | in[i];
    push(make(std::bit_cast<double>(bits)));
  }
  void storage() {
    const ValuePtr id = pop();
    const auto& items = expect<Tuple>(id, "a storage's tuple").items;
    if (items.size() != 5 || expect<std::string>(items[0], "the word storage") != "storage") refuse("a storage's tuple of five is expected");
    const auto type = kStorageTypes.find(expect<Global>(items[1], "a storage type").name);
    if (type == kStorageTypes.end()) refuse("a storage type is expected");
    Storage s{expect<std::string>(items[2], "a storage's key"), type->second, expect<int64_t>(items[4], "a storage's size")};
    const ZipRecord* record = archive_.find("data/" + s.key);
    if (!record) refuse("storage " + s.key.substr(0, 40) + " has no record in the file");
    const int64_t bytes = dtype_bytes(s.dtype);
    if (s.count < 0 || record->size_bytes % bytes != 0 || record->size_bytes / bytes != s.count)
      refuse("storage " + s.key + " says " + std::to_string(s.count) + " elements of " + s.dtype + ", its record holds " + std::to_string(record->size_bytes) + " bytes");
    push(make(std::move(s)));
  }
  static std::vector<int64_t> numbers(const ValuePtr& value, const char* what) {
    std::vector<int64_t> out;
    for (const auto& item : expect<Tuple>(value, what).items) out.push_back(expect<int64_t>(item, what));
    return out;
  }
  void tensor(const std::vector<ValuePtr>& args) {
    if (args.size() < 6) refuse("a tensor has six arguments, found " + std::to_string(args.size()));
    const auto& s = expect<Storage>(args[0], "a storage");
    PickledTensor t{s.key, s.dtype, expect<int64_t>(args[1], "a tensor's offset"), numbers(args[2], "a tensor's size"), numbers(args[3], "a tensor's strides")};
    if (t.shape.size() != t.strides.size() || t.shape.size() > kMaxDimensions) refuse("a tensor's size and strides do not match");
    __int128 last = t.offset, count = 1;
    for (size_t i = 0; i < t.shape.size(); ++i) {
      if (t.shape[i] < 0 || t.strides[i] < 0) refuse("a tensor with a negative size or stride");
      count *= t.shape[i];
      if (count > s.count) refuse("a tensor of more elements than its storage " + s.key + " (" + std::to_string(s.count) + ")");
      last += __int128(t.shape[i] - 1) * t.strides[i];
    }
    if (t.offset < 0 || (count > 0 && last >= s.count)) refuse("a tensor outside its storage " + s.key + " of " + std::to_string(s.count) + " elements");
    push(make(std::move(t)));
  }
  void reduce() {
    const ValuePtr args = pop(), callee = pop();
    const std::string& name = expect<Global>(callee, "a function").name;
    const auto& items = expect<Tuple>(args, "a tuple of arguments").items;
    if (name == "torch._utils _rebuild_tensor_v2") return tensor(items);
    if (name == "torch._utils _rebuild_parameter") {
      if (items.empty()) refuse("a parameter without a tensor");
      expect<PickledTensor>(items[0], "a tensor");
      return push(items[0]);
    }
    if (name != "collections OrderedDict") refuse(name + " is not called");
    if (!items.empty()) refuse("OrderedDict with arguments");
    push(make(Dict{{}, true}));
  }
  void build() {
    pop();  // the attributes of an OrderedDict (_metadata): dropped
    if (!expect<Dict>(top(), "an OrderedDict").ordered) refuse("only an OrderedDict may have attributes");
  }
  void protocol() {
    if (const int version = byte(); version < 2 || version > 5) refuse("pickle protocol " + std::to_string(version) + "; 2 to 5 are read");
  }
  void stack_global() {
    const ValuePtr name = pop(), module = pop();
    global(expect<std::string>(module, "a module's name") + " " + expect<std::string>(name, "a name"));
  }
  void tuple_of(int count) {
    std::vector<ValuePtr> items(size_t(count), nullptr);
    for (int i = count; i-- > 0;) items[size_t(i)] = pop();
    tuple(std::move(items));
  }
  void set_item() {
    ValuePtr value = pop(), key = pop();
    set_items({std::move(key), std::move(value)});
  }

  void step(uint8_t op) {
    switch (op) {
      case 0x80: return protocol();
      case 0x95: take(8); return;  // FRAME: its length is a hint
      case '(': return marks_.push_back(stack_.size());
      case '}': return push(make(Dict{}));
      case ']': return push(make(List{}));
      case ')': return push(make(Tuple{}));
      case 'N': return push(make(None{}));
      case 0x88: return push(make(true));
      case 0x89: return push(make(false));
      case 'K': return push(make(int64_t(byte())));
      case 'M': return push(make(int64_t(little<uint16_t>())));
      case 'J': return push(make(int64_t(little<int32_t>())));
      case 0x8a: return long_integer();
      case 'G': return floating();
      case 'X': return push(make(text(little<uint32_t>())));
      case 0x8c: return push(make(text(byte())));
      case 'q': return remember(byte());
      case 'r': return remember(little<uint32_t>());
      case 0x94: return remember(memo_.size());
      case 'h': return recall(byte());
      case 'j': return recall(little<uint32_t>());
      case 0x85: return tuple_of(1);
      case 0x86: return tuple_of(2);
      case 0x87: return tuple_of(3);
      case 't': return tuple(pop_to_mark());
      case 'a': { ValuePtr item = pop(); return append({std::move(item)}); }
      case 'e': return append(pop_to_mark());
      case 's': return set_item();
      case 'u': return set_items(pop_to_mark());
      case 'c': { std::string module = line(); return global(module + " " + line()); }
      case 0x93: return stack_global();
      case 'Q': return storage();
      case 'R': return reduce();
      case 'b': return build();
      default: refuse("this opcode is not read: it has no use in a file of tensors and plain values");
    }
  }

  std::string_view bytes_;
  const ZipArchive& archive_;
  size_t at_ = 0, opcode_at_ = 0;
  uint8_t opcode_ = 0;
  int64_t values_ = 0;
  std::vector<ValuePtr> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint64_t, ValuePtr> memo_;
};

}  // namespace

int64_t PickledTensor::count() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

bool PickledTensor::contiguous() const {
  int64_t wanted = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != wanted) return false;
    wanted *= shape[i];
  }
  return true;
}

const Value* Value::get(std::string_view key) const {
  const Dict* dict = as<Dict>();
  if (!dict) return nullptr;
  const Value* found = nullptr;
  for (const auto& [name, value] : dict->items)
    if (const auto* text = name->as<std::string>(); text && *text == key) found = value.get();  // the last one wins, as in Python
  return found;
}

Result<ValuePtr> parse_pickle(std::string_view bytes, const ZipArchive& archive) {
  Machine machine(bytes, archive);
  try {
    return machine.run();
  } catch (const Refused& refused) {
    return fail(ErrorCode::kFixData, "[import] " + archive.path() + ": " + machine.where() + refused.what);
  }
}

Result<ValuePtr> read_pickle(const ZipArchive& archive) {
  const ZipRecord* record = archive.find("data.pkl");
  const std::string where = "[import] " + archive.path() + ": ";
  if (!record) return fail(ErrorCode::kFixData, where + "has no record data.pkl: no file of torch.save");
  if (record->size_bytes > kMaxPickleBytes) return fail(ErrorCode::kFixData, where + "data.pkl has " + std::to_string(record->size_bytes) + " bytes, more than 64 MiB: no model's checkpoint");
  if (const ZipRecord* order = archive.find("byteorder")) {
    std::string text(size_t(std::min<int64_t>(order->size_bytes, 16)), '\0');
    if (order->size_bytes <= 16) TESSERA_TRY(archive.read("byteorder", text.data()));
    if (text != "little") return fail(ErrorCode::kFixData, where + "was written on a big-endian machine; save it again on a little-endian one");
  }
  std::string bytes(size_t(record->size_bytes), '\0');
  TESSERA_TRY(archive.read("data.pkl", bytes.data()));
  return parse_pickle(bytes, archive);
}

}  // namespace tessera::import
