// The subcommands of tessera-model. Each parses its own arguments (argv[0] is its name) and returns an exit code of
// INTERFACES; with --json the last line of stdout is one object with "schema": 1.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "common/result.h"

namespace tessera::tool {

int import_main(int argc, char** argv);  // import ijepa FILE --out CHECKPOINT
int export_main(int argc, char** argv);  // export safetensors|huggingface|pth CHECKPOINT --out DIR --weights target|context
int bench_main(int argc, char** argv);   // bench step --model NAME ...

// Prints the error on stderr; its exit code.
int report(const Error& error);
// With json: the object with schema 1 on one line. Without: `text`.
void print(const nlohmann::json& object, const std::string& text, bool json);

}  // namespace tessera::tool
