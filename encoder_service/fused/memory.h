// Memory for what is between two products.

#pragma once

#include <cstdlib>
#include <memory>

namespace samovar {

inline int round_up(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

// Aligned to cache lines.
template <class T>
struct Aligned {
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> memory;

    explicit Aligned(size_t count)
        : memory(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {}
    operator T*() const { return memory.get(); }
};

}  // namespace samovar
