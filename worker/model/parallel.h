// at::parallel_for, and the certainty that it is parallel: compiled without OpenMP it is a plain loop and says nothing.
#pragma once

#include <ATen/Parallel.h>

#ifndef INTRA_OP_PARALLEL
#error "at::parallel_for would be serial: this file is compiled without -fopenmp (cmake/libtorch.cmake)"
#endif
