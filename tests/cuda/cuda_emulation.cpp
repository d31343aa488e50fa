// The fibers behind cuda_emulation.h. Compiled without -fsanitize: POH_TSAN or POH_ASAN say which runtime to inform.
// Plain arrays only: an inline function shared with instrumented code could be linked in its instrumented form.
#include "cuda_emulation.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#if defined(POH_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
#elif defined(POH_ASAN)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) || !defined(__linux__)
#error "the switch between fibers is written for x86-64 Linux"
#endif

// Saves the callee-saved registers and the stack pointer, and continues on another stack. (swapcontext would do, at
// two system calls a switch, and AddressSanitizer's interceptor of it forgets what it knows of the target's stack.)
extern "C" void poh_switch_stack(void** save, void* load);
asm(R"(
.text
.globl poh_switch_stack
.hidden poh_switch_stack
.type poh_switch_stack, @function
poh_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size poh_switch_stack, .-poh_switch_stack
)");

namespace emulation {
namespace {

constexpr int kMaxThreads = 1024, kWarp = 32, kMaxStatics = 16;
#if defined(POH_ASAN)
constexpr size_t kStack = 512 << 10, kGuard = 4096;
#else
constexpr size_t kStack = 128 << 10, kGuard = 4096;
#endif

enum Wait { kRunning, kBarrier, kWarpSync, kShuffle, kBallot, kExited };
constexpr const char* kWaitName[] = {"running", "__syncthreads", "__syncwarp", "a shuffle", "a ballot", "its end"};

struct Fiber {
  void* sp = nullptr;
  char* stack = nullptr;  // lowest address
  size_t stack_size = 0;
  void* tsan = nullptr;
  void* fake_stack = nullptr;
  int rank = 0;
  Wait wait = kRunning;
  bool abandoned = false;  // its frames were never left
  unsigned mask = 0;    // of the collective waited for
  uint64_t value = 0;   // what it brought, then what it got
  int source = 0;
};

// Threads of one warp that wait with the same mask. Masks of one warp that are in use at once are disjoint.
struct Collective {
  unsigned mask = 0, arrived = 0;
  Wait kind = kRunning;
  char tag[2] = {};
  int phase = 0;
};

struct Static {
  const void* key;
  void* memory;
};

struct Team {  // runs every other block
  Fiber fiber[kMaxThreads];
  Collective collective[kMaxThreads / kWarp][kWarp];
  char barrier_tag[2] = {};
  int barrier_phase = 0, at_barrier = 0;
  int made = 0;
};

struct Launch {
  unsigned blocks = 0, threads = 0;
  size_t shared_bytes = 0;
  void (*body)(const void*) = nullptr;
  const void* context = nullptr;
};

Team teams[2];
Fiber host;
Fiber* current = &host;
Team* team = nullptr;
Launch launch;
unsigned block = 0;
int alive = 0;
int queue[kMaxThreads];
int queue_first = 0, queue_count = 0;
void* dynamic_memory = nullptr;
Static statics[kMaxStatics];
int static_count = 0;
void** garbage = nullptr;  // freed when the launch is over: a free in between would look like a write
int64_t garbage_count = 0, garbage_capacity = 0;
char error[512];
enum ErrorKind { kNone, kAssertion, kMisuse } error_kind = kNone;
char start_tag, end_tag;
int64_t launches = 0, threads_run = 0, collectives = 0;

void acquire([[maybe_unused]] void* tag) {
#if defined(POH_TSAN)
  __tsan_acquire(tag);
#endif
}
void release([[maybe_unused]] void* tag) {
#if defined(POH_TSAN)
  __tsan_release(tag);
#endif
}

// `from` is not resumed if dying.
void switch_to(Fiber* to, [[maybe_unused]] bool dying = false) {
  Fiber* from = current;
  if (from == to) return;
  current = to;
#if defined(POH_ASAN)
  __sanitizer_start_switch_fiber(dying ? nullptr : &from->fake_stack, to->stack, to->stack_size);
#elif defined(POH_TSAN)
  __tsan_switch_to_fiber(to->tsan, __tsan_switch_to_fiber_no_sync);
#endif
  poh_switch_stack(&from->sp, to->sp);
#if defined(POH_ASAN)
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

// Order of the threads of a block: POH_EMULATION_ORDER=reverse turns it round. A result must not depend on it.
bool reversed() {
  const char* order = std::getenv("POH_EMULATION_ORDER");
  return order != nullptr && std::strcmp(order, "reverse") == 0;
}

void make_ready(Fiber* f) {
  f->wait = kRunning;
  queue[(queue_first + queue_count++) % kMaxThreads] = f->rank;
}

[[noreturn]] void leave(ErrorKind kind) {
  error_kind = kind;
  switch_to(&host, true);
  std::abort();
}

[[noreturn]] void misuse(const char* what, unsigned mask) {
  std::snprintf(error, sizeof(error), "CUDA emulation: thread %d of block %u: %s (mask %08x)", current->rank, block,
                what, mask);
  leave(kMisuse);
}

// Continues with the next thread that can run.
void next(bool dying) {
  if (queue_count > 0) {
    Fiber* to = &team->fiber[queue[queue_first]];
    queue_first = (queue_first + 1) % kMaxThreads;
    --queue_count;
    switch_to(to, dying);
    return;
  }
  if (alive > 0) {
    int counts[6] = {};
    const Fiber* stuck = nullptr;
    for (unsigned i = 0; i < launch.threads; ++i) {
      ++counts[team->fiber[i].wait];
      if (stuck == nullptr && team->fiber[i].wait != kExited) stuck = &team->fiber[i];
    }
    std::snprintf(error, sizeof(error),
                  "CUDA emulation: block %u is stuck: thread %d waits at %s (mask %08x); %d threads wait at "
                  "__syncthreads, %d at __syncwarp, %d at a shuffle, %d at a ballot, %d have ended",
                  block, stuck->rank, kWaitName[stuck->wait], stuck->mask, counts[kBarrier], counts[kWarpSync],
                  counts[kShuffle], counts[kBallot], counts[kExited]);
    leave(kMisuse);
  }
  switch_to(&host, dying);
}

void entry() {
#if defined(POH_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  acquire(&start_tag);
  launch.body(launch.context);
  release(&end_tag);
  current->wait = kExited;
  --alive;
  next(true);
  std::abort();
}

void prepare(Fiber* f, int rank) {
  if (f->stack == nullptr) {
    void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    mprotect(memory, kGuard, PROT_NONE);
    f->stack = static_cast<char*>(memory);
    f->stack_size = kStack;
  }
#if defined(POH_TSAN)
  if (f->tsan == nullptr) f->tsan = __tsan_create_fiber(0);
#elif defined(POH_ASAN)
  if (f->abandoned) __asan_unpoison_memory_region(f->stack + kGuard, kStack - kGuard);
  f->fake_stack = nullptr;
#endif
  f->abandoned = false;
  f->rank = rank;
  void** top = reinterpret_cast<void**>(f->stack + kStack);
  top[-1] = nullptr;
  top[-2] = reinterpret_cast<void*>(&entry);  // popped by ret
  f->sp = top - 8;                            // six registers below it
}

// After an error the threads lie where they were: give them up.
void abandon(Team& t) {
  for (int i = 0; i < kMaxThreads; ++i) {
#if defined(POH_TSAN)
    if (t.fiber[i].tsan != nullptr) __tsan_destroy_fiber(t.fiber[i].tsan);
#endif
    t.fiber[i].tsan = nullptr;
    t.fiber[i].abandoned = true;
  }
}

void* fresh_memory(size_t bytes) {
  if (garbage_count == garbage_capacity) {
    garbage_capacity = garbage_capacity * 2 + 64;
    garbage = static_cast<void**>(std::realloc(garbage, garbage_capacity * sizeof(void*)));
  }
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes) != 0) std::abort();
  std::memset(memory, 0xA5, bytes);
  garbage[garbage_count++] = memory;
  return memory;
}

void run_block() {
  team = &teams[block % 2];
  team->barrier_phase = team->at_barrier = 0;
  static_count = 0;
  dynamic_memory = launch.shared_bytes == 0 ? nullptr : fresh_memory(launch.shared_bytes);
  queue_first = queue_count = 0;
  alive = static_cast<int>(launch.threads);
  const bool backwards = reversed();
  for (auto& warp : team->collective) {
    for (Collective& c : warp) c.arrived = 0;
  }
  for (int i = 0; i < alive; ++i) {
    Fiber* f = &team->fiber[backwards ? alive - 1 - i : i];
    prepare(f, backwards ? alive - 1 - i : i);
    make_ready(f);
  }
  release(&start_tag);
  next(false);
}

// Waits until every lane of mask has arrived; the last one gives each its value.
void meet(unsigned mask, Wait kind) {
  ++collectives;
  const int lane = current->rank % kWarp, warp = current->rank / kWarp;
  if ((mask >> lane & 1u) == 0) misuse("calls a warp function with a mask that lacks its own lane", mask);
  Collective& c = team->collective[warp][__builtin_ctz(mask)];
  if (c.arrived == 0) {
    c.mask = mask;
    c.kind = kind;
    c.phase ^= 1;
  }
  if (c.mask != mask) misuse("meets lanes that wait with another mask", mask);
  if (c.kind != kind) misuse("meets lanes that wait in another warp function", mask);
  c.arrived |= 1u << lane;
  char* tag = &c.tag[c.phase];  // two in turn: a late lane must not take what an early one did after the meeting
  if (kind == kWarpSync) release(tag);
  current->mask = mask;
  if (c.arrived != mask) {
    current->wait = kind;
    next(false);
  } else {
    c.arrived = 0;
    Fiber* first = &team->fiber[warp * kWarp];
    uint64_t brought[kWarp];
    unsigned votes = 0;
    for (int i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1u) == 0) continue;
      brought[i] = first[i].value;
      votes |= (first[i].value != 0 ? 1u : 0u) << i;
    }
    for (int i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1u) == 0) continue;
      if (kind == kShuffle) {
        const int source = first[i].source;
        if (source < 0 || source >= kWarp || (mask >> source & 1u) == 0) {
          misuse("shuffles from a lane that is not in the mask", mask);
        }
        first[i].value = brought[source];
      } else if (kind == kBallot) {
        first[i].value = votes;
      }
      if (&first[i] != current) make_ready(&first[i]);
    }
  }
  if (kind == kWarpSync) acquire(tag);
}

}  // namespace

uint3 thread_index() { return {static_cast<unsigned>(current->rank), 0, 0}; }
uint3 block_index() { return {block, 0, 0}; }
uint3 block_size() { return {launch.threads, 1, 1}; }
uint3 grid_size() { return {launch.blocks, 1, 1}; }
void* dynamic_shared() { return dynamic_memory; }

void* static_shared(const void* key, size_t bytes) {
  for (int i = 0; i < static_count; ++i) {
    if (statics[i].key == key) {
      acquire(statics[i].memory);
      return statics[i].memory;
    }
  }
  if (static_count == kMaxStatics) misuse("declares too many shared variables", 0);
  statics[static_count] = {key, fresh_memory(bytes)};
  release(statics[static_count].memory);
  return statics[static_count++].memory;
}

void sync_threads() {
  ++collectives;
  Team* t = team;
  char* tag = &t->barrier_tag[t->barrier_phase];
  release(tag);
  current->mask = 0;
  if (++t->at_barrier < static_cast<int>(launch.threads)) {
    current->wait = kBarrier;
    next(false);
  } else {
    t->at_barrier = 0;
    t->barrier_phase ^= 1;
    for (unsigned i = 0; i < launch.threads; ++i) {
      if (t->fiber[i].wait == kBarrier) make_ready(&t->fiber[i]);
    }
  }
  acquire(tag);
}

void sync_warp(unsigned mask) { meet(mask, kWarpSync); }

uint64_t shuffle(unsigned mask, uint64_t value, int source) {
  current->value = value;
  current->source = source;
  meet(mask, kShuffle);
  return current->value;
}

unsigned ballot(unsigned mask, bool predicate) {
  current->value = predicate;
  meet(mask, kBallot);
  return static_cast<unsigned>(current->value);
}

void fail(const char* message) {
  std::snprintf(error, sizeof(error), "%s", message);
  leave(kAssertion);
}

void run(int64_t blocks, int threads, size_t shared_bytes, void (*body)(const void*), const void* context) {
  if (blocks < 1 || blocks > 0x7fffffff || threads < 1 || threads > kMaxThreads || threads % kWarp != 0) {
    throw std::logic_error("CUDA emulation: a launch needs 1 to 2^31 - 1 blocks of 32, 64, ... 1024 threads");
  }
  if (current != &host) throw std::logic_error("CUDA emulation: a launch from device code");
  launch = {static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes, body, context};
#if defined(POH_TSAN)
  host.tsan = __tsan_get_current_fiber();
#elif defined(POH_ASAN)
  pthread_attr_t attributes;
  void* bottom;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &host.stack_size);
  pthread_attr_destroy(&attributes);
  host.stack = static_cast<char*>(bottom);
#endif
  ++launches;
  threads_run += blocks * threads;
  error_kind = kNone;
  for (block = 0; block < launch.blocks && error_kind == kNone; ++block) run_block();
  acquire(&end_tag);
  for (int64_t i = 0; i < garbage_count; ++i) std::free(garbage[i]);
  garbage_count = 0;
  if (error_kind == kNone) return;
  abandon(teams[0]);
  abandon(teams[1]);
  if (error_kind == kAssertion) throw std::out_of_range(error);
  throw std::logic_error(error);
}

}  // namespace emulation

// What was executed, for the tests' summary.
extern "C" __attribute__((visibility("default"))) void poh_emulation_counts(int64_t* out) {
  out[0] = emulation::launches;
  out[1] = emulation::threads_run;
  out[2] = emulation::collectives;
}
