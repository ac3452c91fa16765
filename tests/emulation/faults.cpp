// Kernels that have one fault each. `faults NAME` launches one and prints the emulator's message;
// `faults` lists the names.
#include <cstdio>
#include <map>
#include <string_view>

#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/packets.cuh"

namespace {

using namespace mast_ext::kernels;

alignas(16) float memory[64] = {};

// Keeps the compiler from removing stores that nobody reads.
void keep(const void* shared) { asm volatile("" ::"r"(shared) : "memory"); }

template <int kMostBytes>
__global__ void writes_dynamic(DynamicShared<kMostBytes>, int bytes) {
  __shared__ float own[128];
  own[threadIdx.x] = 0;
  keep(own);
  if (threadIdx.x == 0) dynamic_shared_memory()[bytes - 1] = 0;
}

__global__ void writes_dynamic_unasked() {
  __shared__ float own[128];
  own[threadIdx.x] = 0;
  keep(own);
}

__global__ void writes_much() {
  __shared__ float own[13 << 10];
  for (int i = threadIdx.x; i < 13 << 10; i += 128) own[i] = 0;
  keep(own);
}

__global__ void nothing() {}

// ---- Barriers and instructions of a warp

__global__ void waits_at_two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void shuffles_half_a_warp() {
  if (threadIdx.x % 2 == 0) __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void shuffles_two_ways() {
  threadIdx.x % 2 == 0 ? __shfl_xor_sync(0xffffffffu, 1.0f, 1)
                       : __shfl_xor_sync(0xffffffffu, 1.0f, 2);
}

// ---- Alignment

__global__ void copies_to_odd_address() {
  alignas(16) __shared__ float own[8];
  if (threadIdx.x == 0) copy_async<16>(own + 1, memory, true);
  wait_for_copies();
}

__global__ void copies_from_odd_address() {
  alignas(16) __shared__ float own[8];
  if (threadIdx.x == 0) copy_async<16>(own, memory + 1, true);
  wait_for_copies();
}

__global__ void loads_odd_matrix() {
  alignas(16) __shared__ unsigned char own[32 * 16 + 8];
  for (int i = threadIdx.x; i < 32 * 16 + 8; i += 128) own[i] = 0;
  __syncthreads();
  unsigned matrices[4];
  load_matrices(matrices, shared_address(own + threadIdx.x % 32 * 16 + 8));
}

__global__ void loads_odd_vector() {
  const float4 four = *reinterpret_cast<const float4*>(memory + 1 + threadIdx.x % 2);
  memory[threadIdx.x % 64] = four.x;
}

// ---- Kinds of memory

__global__ void stores_to_shared_as_global() {
  alignas(16) __shared__ float own[4 * 128];
  const float four[4] = {1, 2, 3, 4};
  write(four, own + 4 * threadIdx.x);
}

__global__ void copies_from_shared() {
  alignas(16) __shared__ float own[8];
  if (threadIdx.x == 0) copy_async<16>(own, own + 4, true);
  wait_for_copies();
}

// ---- Races for static and dynamic memory

__global__ void write_the_same() {
  __shared__ float own[1];
  own[0] = threadIdx.x;
  keep(own);
}

__global__ void read_without_barrier() {
  __shared__ float own[128];
  own[threadIdx.x] = 1;
  memory[threadIdx.x % 64] = own[127 - threadIdx.x];
}

__global__ void read_after_shuffle() {
  __shared__ float own[128];
  own[threadIdx.x] = 1;
  const float one = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  memory[threadIdx.x % 64] = one + own[threadIdx.x ^ 1];
}

__global__ void write_what_is_read(DynamicShared<1024>) {
  auto* own = reinterpret_cast<float*>(dynamic_shared_memory());
  own[threadIdx.x] = 1;
  __syncthreads();
  memory[threadIdx.x % 64] = own[127 - threadIdx.x];
  own[threadIdx.x] = 2;
  keep(own);
}

__global__ void passes_barriers() {
  __shared__ float own[128];
  own[threadIdx.x] = 1;
  __syncthreads();  // needed
  memory[threadIdx.x % 64] = own[127 - threadIdx.x];
  __syncthreads();  // this one would do,
  __syncthreads();  // or this one
  own[threadIdx.x] = 2;
  __syncthreads();  // nobody reads what another thread wrote
  memory[threadIdx.x % 64] = own[threadIdx.x];
  for (int round = 0; round < 2; ++round) {
    __syncthreads();  // needed, in the second round
    own[(threadIdx.x + round) % 128] = 3;
  }
}

__global__ void read_copy_on_its_way() {
  __shared__ float own[128];
  copy_async<4>(own + threadIdx.x, memory, true);
  memory[threadIdx.x % 64] = own[threadIdx.x];
  wait_for_copies();
}

__global__ void read_copy_without_barrier() {
  __shared__ float own[128];
  copy_async<4>(own + threadIdx.x, memory, true);
  wait_for_copies();
  memory[threadIdx.x % 64] = own[threadIdx.x ^ 1];
}

__global__ void leave_copy_on_its_way() {
  __shared__ float own[128];
  copy_async<4>(own + threadIdx.x, memory, true);
}

__global__ void read_what_nobody_wrote() {
  __shared__ float own[128];
  if (threadIdx.x != 1) own[threadIdx.x] = 1;
  __syncthreads();
  memory[threadIdx.x % 64] = own[threadIdx.x];
}

// ---- No fault

__global__ void in_order(DynamicShared<96 << 10>) {
  __shared__ float own[128], copied[128];
  auto* const dynamic = reinterpret_cast<float*>(dynamic_shared_memory());
  own[threadIdx.x] = 1;
  dynamic[threadIdx.x] = own[threadIdx.x];
  copy_async<4>(copied + threadIdx.x, memory, true);
  wait_for_copies();
  __syncthreads();
  memory[threadIdx.x % 64] =
      copied[127 - threadIdx.x] + own[127 - threadIdx.x] + dynamic[127 - threadIdx.x];
  __syncthreads();
  own[threadIdx.x] = 2;
  keep(own);
}

cudaError_t run(void (*kernel)(), dim3 grid = 2, dim3 block = 128) {
  return launch(kernel, grid, block, nullptr);
}

const std::map<std::string_view, cudaError_t (*)()> kFaults = {
    {"in_order", [] { return launch_shared(in_order, 2, 128, 96 << 10, nullptr); }},
    {"no_threads", [] { return run(nothing, 1, dim3(0)); }},
    {"many_threads", [] { return run(nothing, 1, 1025); }},
    {"deep_block", [] { return run(nothing, 1, dim3(1, 1, 65)); }},
    {"long_grid", [] { return run(nothing, dim3(1u << 31)); }},
    {"high_grid", [] { return run(nothing, dim3(1, 65536)); }},
    {"deep_grid", [] { return run(nothing, dim3(1, 1, 65536)); }},
    {"much_static", [] { return run(writes_much); }},
    {"dynamic_unasked", [] { return queue(writes_dynamic_unasked, 1, 128, 48 << 10, nullptr); }},
    {"dynamic_beyond_asked",
     [] { return launch_shared(writes_dynamic<4096>, 1, 128, 8192, nullptr, 8192); }},
    {"dynamic_beyond_limit",
     [] { return queue(writes_dynamic_unasked, 1, 128, 100 << 10, nullptr); }},
    {"writes_behind_dynamic",
     [] { return launch_shared(writes_dynamic<4096>, 1, 128, 4096, nullptr, 4097); }},
    {"waits_at_two_barriers", [] { return run(waits_at_two_barriers); }},
    {"shuffles_half_a_warp", [] { return run(shuffles_half_a_warp); }},
    {"shuffles_two_ways", [] { return run(shuffles_two_ways); }},
    {"copies_to_odd_address", [] { return run(copies_to_odd_address); }},
    {"copies_from_odd_address", [] { return run(copies_from_odd_address); }},
    {"loads_odd_matrix", [] { return run(loads_odd_matrix); }},
    {"loads_odd_vector", [] { return run(loads_odd_vector); }},
    {"stores_to_shared_as_global", [] { return run(stores_to_shared_as_global); }},
    {"copies_from_shared", [] { return run(copies_from_shared); }},
    {"write_the_same", [] { return run(write_the_same); }},
    {"read_without_barrier", [] { return run(read_without_barrier); }},
    {"read_after_shuffle", [] { return run(read_after_shuffle); }},
    {"write_what_is_read", [] { return launch_shared(write_what_is_read, 2, 128, 1024, nullptr); }},
    {"passes_barriers", [] { return run(passes_barriers); }},
    {"read_copy_on_its_way", [] { return run(read_copy_on_its_way); }},
    {"read_copy_without_barrier", [] { return run(read_copy_without_barrier); }},
    {"leave_copy_on_its_way", [] { return run(leave_copy_on_its_way); }},
    {"read_what_nobody_wrote", [] { return run(read_what_nobody_wrote); }},
};

}  // namespace

int main(int count, char** arguments) {
  if (count == 1) {
    for (const auto& [name, run] : kFaults) std::puts(name.data());
    return 0;
  }
  std::puts(cudaGetErrorString(kFaults.at(arguments[1])()));
}
