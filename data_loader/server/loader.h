// The loader process: its link to the coordinator, opening the dataset, the data port. One control thread runs this; the
// data port and the opener have their own.
//
//   hello -> welcome -> the dataset is opened (or indexed) -> LoaderDataset, or its error -> tiles are served
//
// A coordinator that restarts asks for a new hello (Reintroduce); tiles are served all the while. LoaderStatus goes out
// every 200 ms, also while the dataset is being opened.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "common/result.h"
#include "data_loader/server/data_port.h"

namespace tessera::data {

struct LoaderOptions {
  std::string coordinator;  // HOST:PORT or address.json; empty: standalone
  std::string data_path;    // empty: the coordinator's operation.data_path
  int threads = 0;          // 0: the coordinator's operation.loader_threads
  std::string bind;         // empty: loopback when the coordinator is on it, else all addresses
  std::string advertise;    // empty: the address that reaches the coordinator
  int port = 0;
  std::string name;         // empty: loader:<host>:<pid>
  std::string address_file; // standalone: {"data_address": "tcp://127.0.0.1:PORT", ...} is written there when it serves
  std::string interpolation = "bilinear";  // standalone
  std::string function_file;  // standalone: serve the tiles of this function config (YAML) too
  std::string manifest_folder = "runs/.manifests";  // standalone
  RemoteOptions remote;       // standalone; with a coordinator its operation.remote counts
  Millis abandoned_ms = 0;    // leaves when nothing was heard of the coordinator for so long; 0: ten minutes
  int stop_fd = -1;         // readable: finish (a signalfd)
};

// Serves until the coordinator says Shutdown, or stop_fd is readable. Returns the exit code, or the error whose code it is.
Result<int> run_loader(const LoaderOptions& options);

// Without a coordinator: serves SampleRequest and DatasetRequest on loopback until stop_fd is readable.
Result<int> run_standalone(const LoaderOptions& options);

// "10.0.0.1:7001" as it is; of an address.json its "control". Errors: kUnavailable (no such file, no address in it).
Result<std::string> coordinator_address(const std::string& text);

}  // namespace tessera::data
