// The emulated GPU: launches, thread blocks, barriers, collectives, asynchronous copies and tensor
// cores. See cuda_runtime.h.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <link.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "detector.h"

dim3 blockIdx, threadIdx, blockDim, gridDim;

namespace emulation {

unsigned current;

namespace {

constexpr std::size_t kStackBytes = 128 << 10;
constexpr unsigned kMostThreads = 1024, kMostDeepThreads = 64;
constexpr unsigned kMostBlocks = 0x7fffffff, kMostBlocksBeside = 65535;  // in x; in y and z

// The most shared memory of a thread block, static and dynamic together: without a request
// (cudaFuncSetAttribute), and with one on the GPUs that have the least.
constexpr std::size_t kSharedUnasked = 48 << 10, kMostShared = 99 << 10;
constexpr std::size_t kGuardBytes = 4 << 10;  // behind dynamic memory, where nothing may be written
constexpr std::byte kPoison{0xff};            // NaN in every floating-point format

struct Options {
  bool last_warp_first = std::getenv("EMULATE_LAST_WARP_FIRST") != nullptr;
  bool early_copies = std::getenv("EMULATE_EARLY_COPIES") != nullptr;
  std::string_view skipped_file;
  unsigned skipped_line = 0;

  Options() {
    const char* barrier = std::getenv("EMULATE_SKIP_BARRIER");
    if (barrier == nullptr) return;
    const std::string_view place = barrier;
    skipped_file = place.substr(0, place.rfind(':'));
    skipped_line = static_cast<unsigned>(std::atoi(barrier + skipped_file.size() + 1));
  }

  bool skips(const std::source_location& where) const {
    return where.line() == skipped_line &&
           std::string_view(where.file_name()).ends_with(skipped_file);
  }
};

// ---- Threads

#ifdef __x86_64__
using Context = void*;  // the stack pointer of a suspended thread

// swapcontext() makes a system call for the signal mask, which would take most of a test's time.
__attribute__((naked, noinline)) void switch_context(Context*, Context*) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq (%rsi), %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

void make_context(Context* context, char* stack, void (*enter)()) {
  auto** top = reinterpret_cast<void**>(stack + kStackBytes) - 3;  // aligned as after a call
  *--top = reinterpret_cast<void*>(enter);
  *context = top - 6;
}
#else
using Context = ucontext_t;

void switch_context(Context* from, Context* to) { swapcontext(from, to); }

void make_context(Context* context, char* stack, void (*enter)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, enter, 0);
}
#endif

// Threads that wait until all of them have arrived.
struct Group {
  unsigned members, arrived, rounds;
};

struct Warp {
  Group lanes;
  Instruction instruction;  // the one that the first lane has reached
};

struct Block {
  Group threads;
  std::source_location barrier;  // the one that the first thread has reached
};

struct Copy {
  void* to;
  const void* from;  // null: zeros
  std::size_t bytes;

  void complete() const { from ? std::memcpy(to, from, bytes) : std::memset(to, 0, bytes); }
};

struct Thread {
  Context context;
  std::unique_ptr<void*[]> stack{new void*[kStackBytes / sizeof(void*)]};
  bool done;
  Group* waits_for;
  unsigned round;
  const void* offer;         // the thread's argument of its warp's collective
  std::vector<Copy> copies;  // in flight

  bool runnable() const { return !done && (!waits_for || waits_for->rounds != round); }
};

std::vector<Thread> threads(kMostThreads);
Context scheduler;
Block block;
Warp warps[kMostThreads / kWarp];
Options options;
const std::function<void()>* thread_body;

std::string failure;  // of the launch; empty: none
cudaError_t last_error = cudaSuccess;

void set_failure(const char* format, va_list arguments) {
  char text[1024];
  std::vsnprintf(text, sizeof(text), format, arguments);
  failure = text;
}

void release(Group& group) {
  group.arrived = 0;
  ++group.rounds;
}

void wait(Group& group) {
  Thread& thread = threads[current];
  thread.waits_for = &group;
  thread.round = group.rounds;
  switch_context(&thread.context, &scheduler);
}

void release_block() {
  if (detector != nullptr) detector->order(block.barrier);
  release(block.threads);
}

void enter() {
  (*thread_body)();
  Thread& thread = threads[current];
  if (!thread.copies.empty()) fail("a thread ends before its asynchronous copies");
  thread.done = true;
  Group& others = block.threads;
  if (--others.members == others.arrived && others.arrived > 0) release_block();
  switch_context(&thread.context, &scheduler);
}

// ---- Shared memory

alignas(128) std::byte dynamic_memory[kMostShared + kGuardBytes];

// The static shared memory that a kernel was seen to use, and the dynamic one that it requested.
struct SharedMemory {
  std::size_t static_bytes = 0, allowed_dynamic_bytes = 0;
  bool asked = false;
};

std::unordered_map<const void*, SharedMemory> shared_memory;

long launches = 0;

// The thread-local memory of this library, which is the kernels' static shared memory.
std::span<std::byte> static_memory() {
  [[maybe_unused]] static thread_local volatile char exists;
  exists = 0;  // the first access allocates the memory
  struct Search {
    std::uintptr_t address;
    std::span<std::byte> found;
  } search{reinterpret_cast<std::uintptr_t>(&failure), {}};
  dl_iterate_phdr(
      [](dl_phdr_info* library, std::size_t, void* to) {
        auto& search = *static_cast<Search*>(to);
        const std::span headers(library->dlpi_phdr, library->dlpi_phnum);
        const bool is_this = std::ranges::any_of(headers, [&](const auto& header) {
          const std::uintptr_t begin = library->dlpi_addr + header.p_vaddr;
          return header.p_type == PT_LOAD && begin <= search.address &&
                 search.address < begin + header.p_memsz;
        });
        if (!is_this) return 0;
        for (const auto& header : headers) {
          if (header.p_type != PT_TLS) continue;
          search.found = {static_cast<std::byte*>(library->dlpi_tls_data), header.p_memsz};
        }
        return 1;
      },
      &search);
  return search.found;
}

std::span<std::byte> fixed_memory;  // static_memory() of the thread that launches

bool is_shared(const void* address) {
  const auto within = [&](const void* begin, std::size_t bytes) {
    const auto offset =
        reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(begin);
    return offset < bytes;
  };
  return within(fixed_memory.data(), fixed_memory.size()) || within(dynamic_memory, kMostShared);
}

// Fills memory with poison; returns the number of bytes that had another value.
std::size_t poison(std::span<std::byte> memory) {
  static constexpr std::size_t kPiece = 256;  // comparing is cheaper than counting and writing
  static const std::vector<std::byte> clean(kPiece, kPoison);
  std::size_t written = 0;
  while (!memory.empty()) {
    const std::span piece = memory.first(std::min(kPiece, memory.size()));
    memory = memory.subspan(piece.size());
    if (std::memcmp(piece.data(), clean.data(), piece.size()) == 0) continue;
    written += piece.size() - std::ranges::count(piece, kPoison);
    std::ranges::fill(piece, kPoison);
  }
  return written;
}

// ---- Blocks

bool run_warp(unsigned warp) {
  bool ran = false;
  for (bool more = true; more;) {
    more = false;
    for (unsigned lane = 0; lane < warps[warp].lanes.members; ++lane) {
      current = warp * kWarp + lane;
      if (!threads[current].runnable()) continue;
      threadIdx = dim3(current % blockDim.x, current / blockDim.x % blockDim.y,
                       current / (blockDim.x * blockDim.y));
      switch_context(&scheduler, &threads[current].context);
      if (!failure.empty()) return true;
      more = ran = true;
    }
  }
  return ran;
}

void run_threads(unsigned count) {
  const unsigned warp_count = (count + kWarp - 1) / kWarp;
  block = {{count, 0, 0}, {}};
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.done = false;
    thread.waits_for = nullptr;
    thread.copies.clear();
    warps[i / kWarp] = {{i % kWarp + 1, 0, 0}, {}};
    make_context(&thread.context, reinterpret_cast<char*>(thread.stack.get()), enter);
  }
  while (block.threads.members > 0 && failure.empty()) {
    bool ran = false;
    for (unsigned i = 0; i < warp_count && failure.empty(); ++i) {
      ran |= run_warp(options.last_warp_first ? warp_count - 1 - i : i);
    }
    if (!ran) failure = "threads wait for others that never come";
  }
}

// Sets `failure` unless `ok`.
void require(bool ok, const char* format, ...) {
  if (ok || !failure.empty()) return;
  va_list arguments;
  va_start(arguments, format);
  set_failure(format, arguments);
  va_end(arguments);
}

// Runs the threads of a block. Both kinds of shared memory are poisoned before the call, and again
// at its end. Returns the number of bytes of static memory that are seen to have been written.
std::size_t run_block(unsigned threads, std::span<std::byte> static_bytes,
                      std::span<std::byte> dynamic_bytes) {
  if (detector != nullptr) detector->begin_block(static_bytes, dynamic_bytes);
  run_threads(threads);
  if (detector != nullptr) detector->end_block();
  poison(dynamic_bytes);
  require(poison({dynamic_bytes.data() + dynamic_bytes.size(), kGuardBytes}) == 0,
          "a block writes behind its %zu bytes of dynamic shared memory", dynamic_bytes.size());
  return poison(static_bytes);
}

void check_shape(dim3 grid, dim3 block) {
  require(grid.x > 0 && grid.x <= kMostBlocks && grid.y > 0 && grid.y <= kMostBlocksBeside &&
              grid.z > 0 && grid.z <= kMostBlocksBeside,
          "a grid may have %u x %u x %u blocks, got %u x %u x %u", kMostBlocks, kMostBlocksBeside,
          kMostBlocksBeside, grid.x, grid.y, grid.z);
  const std::uint64_t count = std::uint64_t{block.x} * block.y * block.z;
  require(count > 0 && count <= kMostThreads && block.z <= kMostDeepThreads,
          "a block may have %u threads, %u in z, got %u x %u x %u", kMostThreads, kMostDeepThreads,
          block.x, block.y, block.z);
}

void check_shared_memory(const SharedMemory& memory, std::size_t dynamic_bytes) {
  if (memory.asked) {
    require(dynamic_bytes <= memory.allowed_dynamic_bytes,
            "%zu bytes of dynamic shared memory, but only %zu were asked for", dynamic_bytes,
            memory.allowed_dynamic_bytes);
  } else {
    require(memory.static_bytes + dynamic_bytes <= kSharedUnasked,
            "%zu bytes of static and %zu of dynamic shared memory are more than %zu, and were not "
            "asked for",
            memory.static_bytes, dynamic_bytes, kSharedUnasked);
  }
  require(
      memory.static_bytes + std::max(dynamic_bytes, memory.allowed_dynamic_bytes) <= kMostShared,
      "%zu bytes of static and %zu of dynamic shared memory are more than a GPU's %zu",
      memory.static_bytes, std::max(dynamic_bytes, memory.allowed_dynamic_bytes), kMostShared);
}

void check_alignment(const void* address, std::size_t bytes, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
    fail("%s is not at a multiple of %zu bytes: %p", what, bytes, address);
  }
}

}  // namespace

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  set_failure(format, arguments);
  va_end(arguments);
  switch_context(&threads[current].context, &scheduler);
  std::abort();  // not reached: a failed launch is not resumed
}

void require_global(const void* address, const char* what) {
  if (is_shared(address)) fail("%s is in shared memory: %p", what, address);
}

void require_shared(const void* address, const char* what) {
  if (!is_shared(address)) fail("%s is not in shared memory: %p", what, address);
}

unsigned current_lane() { return current % kWarp; }

unsigned char* dynamic_shared_memory() { return reinterpret_cast<unsigned char*>(dynamic_memory); }

cudaError_t allow_dynamic_shared_memory(Kernel kernel, std::size_t bytes) {
  SharedMemory& memory = shared_memory[kernel.address];
  memory.asked = true;
  memory.allowed_dynamic_bytes = bytes;
  return cudaSuccess;
}

// For tests that count them (count_launches.py).
extern "C" long emulated_launches() { return launches; }

namespace {

// Appends a line to `path`: the kernel's address within this library, blocks, threads, and bytes of
// dynamic shared memory.
void record(const char* path, Kernel kernel, dim3 grid, dim3 block_shape,
            std::size_t dynamic_bytes) {
  Dl_info library;
  std::FILE* const file = std::fopen(path, "a");
  if (file == nullptr || dladdr(kernel.address, &library) == 0) {
    failure = "EMULATE_RECORD: cannot write to " + std::string(path);
    last_error = cudaErrorInvalidValue;
  } else {
    const auto count = [](dim3 shape) { return std::size_t{shape.x} * shape.y * shape.z; };
    const auto begin = static_cast<const char*>(library.dli_fbase);
    const auto offset = static_cast<const char*>(kernel.address) - begin;
    std::fprintf(file, "%tx %zu %zu %zu\n", offset, count(grid), count(block_shape), dynamic_bytes);
  }
  if (file != nullptr) std::fclose(file);
}

}  // namespace

void run(Kernel kernel, dim3 grid, dim3 block_shape, std::size_t dynamic_bytes,
         const std::function<void()>& thread) {
  ++launches;
  SharedMemory& memory = shared_memory[kernel.address];
  failure.clear();
  options = Options();
  thread_body = &thread;
  gridDim = grid;
  blockDim = block_shape;
  check_shape(grid, block_shape);
  check_shared_memory(memory, dynamic_bytes);
  if (const char* path = std::getenv("EMULATE_RECORD"); path != nullptr && failure.empty()) {
    return record(path, kernel, grid, block_shape, dynamic_bytes);
  }
  if (const char* error = std::getenv("EMULATE_ERROR"); error != nullptr && failure.empty()) {
    failure = "error " + std::string(error);
    last_error = std::atoi(error);
    return;
  }
  fixed_memory = static_memory();
  poison(fixed_memory);
  poison(dynamic_memory);
  const unsigned threads = block_shape.x * block_shape.y * block_shape.z;
  for (unsigned z = 0; z < grid.z && failure.empty(); ++z) {
    for (unsigned y = 0; y < grid.y && failure.empty(); ++y) {
      for (unsigned x = 0; x < grid.x && failure.empty(); ++x) {
        blockIdx = dim3(x, y, z);
        const std::size_t written =
            run_block(threads, fixed_memory, std::span(dynamic_memory).first(dynamic_bytes));
        memory.static_bytes = std::max(memory.static_bytes, written);
      }
    }
  }
  check_shared_memory(memory, dynamic_bytes);  // now that its static part is known
  if (failure.empty()) return;
  std::string_view parameters = kernel.name;
  parameters = parameters.substr(parameters.find('{'));
  parameters.remove_suffix(1);
  failure = "a kernel of " + std::string(parameters) + ": " + failure;
  last_error = cudaErrorInvalidValue;
}

void barrier(const std::source_location& where) {
  if (options.skips(where)) return;
  if (block.threads.arrived == 0) block.barrier = where;
  const bool same = block.barrier.line() == where.line() &&
                    std::strcmp(block.barrier.file_name(), where.file_name()) == 0;
  if (!same) {
    fail("threads of a block wait at different barriers: %s:%u and %s:%u",
         block.barrier.file_name(), static_cast<unsigned>(block.barrier.line()), where.file_name(),
         static_cast<unsigned>(where.line()));
  }
  ++block.threads.arrived == block.threads.members ? release_block() : wait(block.threads);
}

void collective(Instruction instruction, const void* offer, Action action) {
  Warp& warp = warps[current / kWarp];
  threads[current].offer = offer;
  if (warp.lanes.arrived == 0) warp.instruction = instruction;
  if (warp.instruction != instruction) {
    fail("lanes of a warp come to different instructions: %s, %d and %s, %d", warp.instruction.name,
         warp.instruction.operand, instruction.name, instruction.operand);
  }
  if (++warp.lanes.arrived < warp.lanes.members) return wait(warp.lanes);
  const void* offers[kWarp];
  for (unsigned lane = 0; lane < warp.lanes.members; ++lane) {
    offers[lane] = threads[current / kWarp * kWarp + lane].offer;
  }
  action(offers, warp.lanes.members);
  release(warp.lanes);
}

void start_copy(void* to, const void* from, std::size_t bytes, bool inside) {
  check_alignment(to, bytes, "the target of an asynchronous copy");
  check_alignment(from, bytes, "the source of an asynchronous copy");
  require_shared(to, "the target of an asynchronous copy");
  require_global(from, "the source of an asynchronous copy");
  if (detector != nullptr) detector->start_copy(to, bytes);
  const Copy copy{to, inside ? from : nullptr, bytes};
  if (options.early_copies) copy.complete();
  threads[current].copies.push_back(copy);
}

void wait_for_copies() {
  for (const Copy& copy : threads[current].copies) {
    if (!options.early_copies) copy.complete();
    if (detector != nullptr) detector->finish_copy(copy.to, copy.bytes);
  }
  threads[current].copies.clear();
}

void load_matrices(unsigned (&to)[4], const void* row, bool transposed) {
  struct Offer {
    unsigned* to;
    const void* row;
    bool transposed;
  };
  check_alignment(row, 16, "a matrix row");
  if (detector != nullptr) detector->read(row, 16);
  const Offer offer{to, row, transposed};
  collective({"ldmatrix", transposed}, &offer, [](const void* const* offers, unsigned lanes) {
    if (lanes != kWarp) fail("ldmatrix in a warp of %u lanes", lanes);
    const auto of_lane = [&](unsigned lane) { return static_cast<const Offer*>(offers[lane]); };
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      for (unsigned matrix = 0; matrix < 4; ++matrix) {
        std::uint16_t pair[2];
        for (unsigned i = 0; i < 2; ++i) {
          const bool transposed = of_lane(lane)->transposed;
          const unsigned first = lane / 4, second = lane % 4 * 2 + i;
          const unsigned from = transposed ? second : first, at = transposed ? first : second;
          pair[i] = static_cast<const std::uint16_t*>(of_lane(matrix * 8 + from)->row)[at];
        }
        of_lane(lane)->to[matrix] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
      }
    }
  });
}

namespace {

float bfloat16(unsigned pair, unsigned which) {
  const unsigned bits = which == 0 ? pair << 16 : pair & 0xffff0000u;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

float float16(unsigned pair, unsigned which) {
  const unsigned bits = which == 0 ? pair & 0xffffu : pair >> 16;
  const int exponent = static_cast<int>(bits >> 10 & 31), digits = static_cast<int>(bits & 1023);
  float value;
  if (exponent == 31) {
    value = digits == 0 ? INFINITY : NAN;
  } else {
    value = std::ldexp(static_cast<float>(exponent == 0 ? digits : digits + 1024),
                       (exponent == 0 ? 1 : exponent) - 25);
  }
  return (bits & 0x8000u) != 0 ? -value : value;
}

}  // namespace

void multiply_matrices(float* sum, const unsigned* a, const unsigned* b, bool half) {
  struct Offer {
    float* sum;
    const unsigned *a, *b;
    float (*number)(unsigned pair, unsigned which);
  };
  const Offer offer{sum, a, b, half ? float16 : bfloat16};
  collective({"mma", half}, &offer, [](const void* const* offers, unsigned lanes) {
    if (lanes != kWarp) fail("mma in a warp of %u lanes", lanes);
    const auto of_lane = [&](unsigned lane) { return static_cast<const Offer*>(offers[lane]); };
    float rows[16][16], columns[16][8];
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      for (unsigned i = 0; i < 8; ++i) {
        rows[lane / 4 + i / 2 % 2 * 8][lane % 4 * 2 + i / 4 * 8 + i % 2] =
            of_lane(lane)->number(of_lane(lane)->a[i / 2], i % 2);
      }
      for (unsigned i = 0; i < 4; ++i) {
        columns[lane % 4 * 2 + i / 2 * 8 + i % 2][lane / 4] =
            of_lane(lane)->number(of_lane(lane)->b[i / 2], i % 2);
      }
    }
    float products[16][8] = {};
    for (unsigned m = 0; m < 16; ++m) {
      for (unsigned k = 0; k < 16; ++k) {
        for (unsigned n = 0; n < 8; ++n) products[m][n] += rows[m][k] * columns[k][n];
      }
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      for (unsigned i = 0; i < 4; ++i) {
        of_lane(lane)->sum[i] += products[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
      }
    }
  });
}

}  // namespace emulation

cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : emulation::failure.c_str();
}
