// A loop compiled for three instruction sets (SSE2, AVX2, AVX-512); the program chooses when it starts. The bits are the
// same for all as long as the loop fixes the order of its sums. Sanitizers run before the choice can be made.
#pragma once

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define TESSERA_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define TESSERA_CLONES
#endif
