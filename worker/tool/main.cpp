// tessera-model: what needs LibTorch and no cluster. `tessera` starts it for its own subcommands of the same names.
#include <malloc.h>
#include <unistd.h>

#include <iostream>
#include <string>

#include "common/file.h"
#include "common/log.h"
#include "common/version.h"
#include "worker/cuda/install.h"
#include "worker/evaluate/commands.h"
#include "worker/model/numerics.h"
#include "worker/tool/commands.h"

namespace {

struct Subcommand {
  const char* name;
  int (*run)(int argc, char** argv);
  const char* help;
};
constexpr Subcommand kSubcommands[] = {
    {"import", tessera::tool::import_main, "a published checkpoint into a checkpoint folder"},
    {"export", tessera::tool::export_main, "a checkpoint as safetensors, a Hugging Face folder or a .pth.tar"},
    {"evaluate", tessera::evaluate::evaluate_main, "probes on frozen features"},
    {"embed", tessera::evaluate::embed_main, "a dataset's embeddings as files"},
    {"neighbours", tessera::evaluate::neighbours_main, "an image beside its nearest neighbours"},
    {"visualize", tessera::evaluate::visualize_main, "picture sheets"},
    {"bench", tessera::tool::bench_main, "the speed of a training step on this machine"},
};

int usage(std::ostream& out, int code) {
  out << "usage: tessera-model SUBCOMMAND ...   (tessera-model SUBCOMMAND --help)\n";
  for (const Subcommand& s : kSubcommands) out << "  " << s.name << std::string(12 - std::string(s.name).size(), ' ') << s.help << "\n";
  return code;
}

// --device cuda...
bool wants_gpu(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i], next = i + 1 < argc ? argv[i + 1] : "";
    if (word.starts_with("--device=cuda") || (word == "--device" && next.starts_with("cuda"))) return true;
  }
  return false;
}
// Becomes tessera-model-cuda, where it is built and this is not it.
void run_cuda_program(char** argv) {
  if (std::string(tessera::cuda::linked_devices()) == "cuda") return;
  ::execv((tessera::executable_folder() + "/tessera-model-cuda").c_str(), argv);
}

}  // namespace

int main(int argc, char** argv) {
  tessera::model::pin_library_environment();
  if (wants_gpu(argc, argv)) run_cuda_program(argv);
  tessera::cuda::install_devices();
  mallopt(M_MMAP_THRESHOLD, 1 << 30);  // activations of a step are freed and taken again at once
  mallopt(M_TRIM_THRESHOLD, -1);
  const std::string name = argc > 1 ? argv[1] : "";
  if (name == "--help" || name == "-h") return usage(std::cout, 0);
  if (name == "--version") {
    std::cout << "tessera-model " << tessera::kVersion << "\n";
    return 0;
  }
  if (auto status = tessera::log_init({"model", name, ""}); !status) return tessera::tool::report(status.error());  // progress to stderr
  for (const Subcommand& s : kSubcommands)
    if (name == s.name) {
      tessera::model::choose_matmul();
      return s.run(argc - 1, argv + 1);
    }
  if (!name.empty()) std::cerr << "error: there is no subcommand " << name << "\n";
  return usage(std::cerr, tessera::exit_codes::kUsage);
}
