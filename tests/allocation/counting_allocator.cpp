#include "counting_allocator.hpp"

#include <malloc.h>

#include <cstddef>
#include <new>

namespace squat::test {

std::size_t allocations = 0;
std::size_t bytes_held = 0;
std::size_t fails_at = 0;

}  // namespace squat::test

namespace {

using squat::test::allocations;
using squat::test::bytes_held;
using squat::test::fails_at;

// Blocks come from the heap, which cuts aligned ones to size. Around one in a mapping of its own
// malloc_usable_size would count address space that nothing touches.
[[maybe_unused]] const int heap_blocks = mallopt(M_MMAP_THRESHOLD, 16 << 20);

bool fails() {
  ++allocations;
  return fails_at > 0 && --fails_at == 0;
}

void *allocate(std::size_t size, std::size_t alignment) {
  void *memory =
      fails() ? nullptr : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  bytes_held += malloc_usable_size(memory);
  return memory;
}

void release(void *memory) {
  if (memory != nullptr) bytes_held -= malloc_usable_size(memory);
  std::free(memory);
}

}  // namespace

void *operator new(std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void *operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void *operator new(std::size_t size, const std::nothrow_t &) noexcept {
  try {
    return operator new(size);
  } catch (const std::bad_alloc &) {
    return nullptr;
  }
}
void operator delete(void *memory) noexcept { release(memory); }
void operator delete(void *memory, std::size_t) noexcept { release(memory); }
void operator delete(void *memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void *memory, std::size_t, std::align_val_t) noexcept { release(memory); }

// Eigen's memory: the linker sends calls of malloc here (--wrap).
extern "C" {
void *__real_malloc(std::size_t size);
void *__wrap_malloc(std::size_t size);
void *__wrap_malloc(std::size_t size) { return fails() ? nullptr : __real_malloc(size); }
}
