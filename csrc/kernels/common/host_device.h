// Formulas marked MAST_EXT_HD are compiled once for the CPU kernel and once for the CUDA kernel,
// so that a CPU test checks the arithmetic of both.
#pragma once

#ifdef __CUDACC__
#define MAST_EXT_HD __host__ __device__ __forceinline__
#else
#define MAST_EXT_HD inline
#endif
