#include "ops/cli/checkpoint_files.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "common/file.h"
#include "common/hash.h"
#include "common/safetensors.h"
#include "common/sealed_json.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;

Result<Json> read_manifest(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  auto text = read_file(path, 256 << 20);
  if (!text) return fail(ErrorCode::kFixData, text.error().message + "; without it the folder is no checkpoint");
  TESSERA_ASSIGN(Json manifest, open_sealed_json(*text, path));
  try {
    if (manifest.at("schema") != 1) return fail(ErrorCode::kFixData, path + ": schema " + manifest.at("schema").dump() + " is not 1: written by another version");
    (void)manifest.at("step").get<int64_t>();
    (void)manifest.at("state_digest").get<std::string>();
    for (const Json& file : manifest.at("files")) {
      const std::string name = file.at("file");
      if (name.empty() || name.find('/') != std::string::npos || name.front() == '.') return fail(ErrorCode::kFixData, path + ": '" + name + "' is no file name of a checkpoint");
      (void)file.at("size_bytes").get<int64_t>();
      (void)file.at("hash").get<std::string>();
    }
  } catch (const Json::exception& e) {
    return fail(ErrorCode::kFixData, path + " is damaged: " + e.what());
  }
  return manifest;
}

Status check_sizes(const std::string& folder, const Json& manifest) {
  for (const Json& file : manifest["files"]) {
    const std::string path = folder + "/" + file["file"].get<std::string>();
    std::error_code error;
    const auto size = fs::file_size(path, error);
    if (error) return fail(ErrorCode::kFixData, path + " is missing");
    if (int64_t(size) != file["size_bytes"].get<int64_t>())
      return fail(ErrorCode::kFixData, path + " has " + std::to_string(size) + " bytes, the manifest says " + file["size_bytes"].dump() + ": truncated or replaced");
  }
  return {};
}

Status check_hashes(const std::string& folder, const Json& manifest) {
  for (const Json& file : manifest["files"]) {
    const std::string path = folder + "/" + file["file"].get<std::string>();
    TESSERA_ASSIGN(const Hash128 hash, hash_file(path));
    if (to_hex(hash) != file["hash"].get<std::string>())
      return fail(ErrorCode::kFixData, path + ": its hash is " + to_hex(hash) + ", the manifest says " + file["hash"].get<std::string>() + ": the file is damaged");
  }
  return {};
}

Status check_tensors(const std::string& folder, const Json& manifest) {
  std::set<std::string> present;
  for (const Json& file : manifest["files"]) {
    TESSERA_ASSIGN(const SafetensorsFile tensors, SafetensorsFile::open(folder + "/" + file["file"].get<std::string>()));
    for (const TensorView& tensor : tensors.tensors()) present.insert(tensor.name);
  }
  for (const Json& tensor : manifest.value("tensors", Json::array())) {
    const std::string name = tensor.value("name", "");
    if (!present.contains(name)) return fail(ErrorCode::kFixData, folder + ": tensor " + name + " of the manifest is in none of its files");
  }
  TESSERA_ASSIGN(const StateDigest digest, compute_state_digest(folder));
  if (to_hex(digest) != manifest["state_digest"].get<std::string>())
    return fail(ErrorCode::kFixData, folder + ": the state's digest is " + to_hex(digest) + ", the manifest says " + manifest["state_digest"].get<std::string>());
  return {};
}

}  // namespace

Json to_json(const CheckpointInfo& info) {
  return {{"step", info.step}, {"path", info.path}, {"bytes", info.size_bytes}, {"state_digest", info.state_digest}, {"ok", info.ok}, {"reason", info.reason}};
}

CheckpointInfo inspect_checkpoint(const std::string& folder, Depth depth) {
  CheckpointInfo info;
  info.path = folder;
  const auto bad = [&](const Error& error) {
    info.ok = false;
    info.reason = error.message;
    return info;
  };
  const std::string name = fs::path(folder).filename().string();
  if (name.starts_with("step-")) info.step = std::strtoll(name.c_str() + 5, nullptr, 10);
  auto manifest = read_manifest(folder);
  if (!manifest) return bad(manifest.error());
  info.step = (*manifest)["step"];
  info.state_digest = (*manifest)["state_digest"];
  info.batch_digest = manifest->value("batch_digest", "");
  for (const Json& file : (*manifest)["files"]) info.size_bytes += file["size_bytes"].get<int64_t>();
  if (auto status = check_sizes(folder, *manifest); !status) return bad(status.error());
  if (depth == Depth::kManifest) return info;
  if (auto status = check_hashes(folder, *manifest); !status) return bad(status.error());
  if (auto status = check_tensors(folder, *manifest); !status) return bad(status.error());
  return info;
}

Result<std::vector<std::string>> checkpoint_folders(const std::string& path) {
  if (fs::exists(path + "/manifest.json")) return std::vector<std::string>{path};
  std::vector<std::string> out;
  for (const std::string& root : {path + "/checkpoints", path}) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(root, error)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with("step-") && name.find('.') == std::string::npos && entry.is_directory()) out.push_back(entry.path().string());
    }
    if (!out.empty()) break;
  }
  if (out.empty()) return fail(ErrorCode::kUsage, path + " holds no checkpoint: neither a manifest.json nor folders checkpoints/step-*");
  std::sort(out.begin(), out.end());
  return out;
}

CheckpointInfo newest_checkpoint(const std::string& run_dir) {
  CheckpointInfo none;
  none.step = -1;
  none.ok = false;
  const auto folders = checkpoint_folders(run_dir);
  if (!folders) return none;
  for (auto folder = folders->rbegin(); folder != folders->rend(); ++folder)
    if (CheckpointInfo info = inspect_checkpoint(*folder, Depth::kManifest); info.ok) return info;
  return none;
}

Result<std::vector<std::string>> checkpoint_files(const std::string& folder) {
  TESSERA_ASSIGN(const Json manifest, read_manifest(folder));
  std::vector<std::string> out;
  for (const Json& file : manifest["files"]) out.push_back(folder + "/" + file["file"].get<std::string>());
  return out;
}

Result<StateDigest> compute_state_digest(const std::string& folder) {
  TESSERA_ASSIGN(const Json manifest, read_manifest(folder));
  StateDigest digest = digest_scalar(manifest.value("adam_steps", uint64_t{0}), lane_seeds("optimizer.step"));
  for (const Json& file : manifest["files"]) {
    TESSERA_ASSIGN(const SafetensorsFile tensors, SafetensorsFile::open(folder + "/" + file["file"].get<std::string>()));
    for (const TensorView& tensor : tensors.tensors()) {
      if (tensor.name.ends_with("pos_embed")) continue;  // frozen tables
      if (tensor.dtype != "F32") return fail(ErrorCode::kFixData, folder + ": tensor " + tensor.name + " is " + tensor.dtype + "; a state is F32");
      digest += digest_elements(static_cast<const float*>(tensor.data), tensor.count(), 0, lane_seeds(tensor.name));
    }
  }
  return digest;
}

}  // namespace tessera::cli
