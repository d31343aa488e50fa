// Philox4x32-10: the random numbers of every maze (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). Key = the 64-bit seed; counter = (block, stream, low and high half of the maze's index).
// poh_ext/reference/philox.py is the same in PyTorch; draws must agree bit for bit.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace poh {

// What a draw is for. Streams never overlap, so a maze and the task on it are independent.
enum Stream : uint32_t { kStreamGenerate = 0, kStreamEndpoints = 1, kStreamShare = 4 };

// Four consecutive draws, of block `block`. A loop of calls vectorises: there is nothing but 32-bit products.
POH_HOST_DEVICE void philox4x32(uint32_t block, uint32_t stream, uint64_t index, uint64_t seed, uint32_t out[4]) {
  uint32_t c0 = block, c1 = stream, c2 = static_cast<uint32_t>(index), c3 = static_cast<uint32_t>(index >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{c0} * 0xD2511F53u, p1 = uint64_t{c2} * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

// Blocks 0 ... blocks - 1 -> out[4 * blocks].
POH_HOST_DEVICE void philox_words(Stream stream, uint64_t index, uint64_t seed, int32_t blocks, uint32_t* out) {
#pragma omp simd
  for (int32_t b = 0; b < blocks; ++b) philox4x32(static_cast<uint32_t>(b), stream, index, seed, out + 4 * b);
}

// Draw number `word` alone.
POH_HOST_DEVICE uint32_t philox_word(Stream stream, uint64_t index, uint64_t seed, uint32_t word) {
  uint32_t four[4];
  philox4x32(word / 4, stream, index, seed, four);
  return four[word % 4];
}

// A number in [0, n) from a draw, by its high bits; uneven by less than n / 2^32.
POH_HOST_DEVICE int32_t below(uint32_t word, int32_t n) {
  return static_cast<int32_t>((uint64_t{word} * static_cast<uint32_t>(n)) >> 32);
}

}  // namespace poh
