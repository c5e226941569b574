#include "common/sealed_json.h"

#include "common/hash.h"

namespace tessera {
namespace {

const char* const kKey = "content_hash";

std::string hash_of(const nlohmann::json& document) {
  const std::string text = document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return to_hex(hash_bytes(text.data(), text.size()));
}

}  // namespace

std::string seal_json(nlohmann::json document) {
  document.erase(kKey);
  document[kKey] = hash_of(document);
  return document.dump(1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Result<nlohmann::json> open_sealed_json(const std::string& text, const std::string& path) {
  nlohmann::json document = nlohmann::json::parse(text, nullptr, false);
  if (!document.is_object()) return fail(ErrorCode::kFixData, path + ": is no JSON object: damaged");
  if (!document.contains(kKey) || !document[kKey].is_string()) return fail(ErrorCode::kFixData, path + ": has no " + kKey + ": damaged, or written by hand");
  const std::string said = document[kKey].get<std::string>();
  document.erase(kKey);
  if (const std::string is = hash_of(document); is != said) return fail(ErrorCode::kFixData, path + ": its content has the hash " + is + ", but it says " + said + ": damaged");
  return document;
}

}  // namespace tessera
