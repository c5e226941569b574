// Subcommands of tessera-model that evaluate and draw. Each takes its own argv (argv[0] is its name) and returns the exit
// code; --json prints one object as the last line of stdout, progress goes to stderr.
#pragma once

namespace tessera::evaluate {

int evaluate_main(int argc, char** argv);
int embed_main(int argc, char** argv);
int neighbours_main(int argc, char** argv);
int visualize_main(int argc, char** argv);
int predictor_main(int argc, char** argv);  // argv[0]: predictor or train-decoder

}  // namespace tessera::evaluate
