// Products whose operands come from the second-level cache or beyond: the left one is in panels.
//
// A panel is 32 rows. It has two tiles, of rows 0 to 15 and of rows 16 to 31, for the first 32 of k, two for the next, and
// so on; in float32 a tile has 16 of k. What a product will read thus follows what it reads, and is fetched into the first-level cache two steps early,
// while tiles are multiplied: loading a tile is not done meanwhile, so each must be at hand when its turn comes.

#pragma once

#include "sam/compiled/products.h"

namespace samovar {

constexpr int PANEL = 2 * TILE;
constexpr int PANEL_STEP = 2 * TILE_SIZE;

// Where a row has its numbers from `column` on, which are together up to the next multiple of 32 (16 in float32).
template <class T>
inline T* panel_place(T* panels, int k, int row, int column) {
    constexpr int DEEP = 64 / sizeof(T);
    return panels + (long)(row / PANEL) * PANEL * k + (column / DEEP) * PANEL * DEEP + (row % PANEL) * DEEP +
           column % DEEP;
}

template <int ISA>
struct PanelProducts;

// Out (rows x 16 tiles) = a (rows x k) . b, or out += where ADD. `rows` is a multiple of 32; b is packed by tiles.

template <>
struct PanelProducts<AMX> {
    PanelProducts() { _tile_loadconfig(&CONFIGURATION); }
    ~PanelProducts() { _tile_release(); }

    template <bool ADD>
    void multiply(const bf16* a, int rows, int k, const bf16* b, int tiles, float* out, int stride) const {
        const long steps = k / DEPTH;
        int tile = 0;
        settle_memory();
        for (; tile + 1 < tiles; tile += 2)
            for (int row = 0; row < rows; row += PANEL)
                both<ADD>(a + (long)row * k, steps, b + tile * steps * TILE_SIZE, out + (long)row * stride + tile * TILE,
                          stride);
        for (int row = 0; tile < tiles && row < rows; row += PANEL)
            one<ADD>(a + (long)row * k, steps, b + tile * steps * TILE_SIZE, out + (long)row * stride + tile * TILE,
                     stride);
        settle_memory();
    }

   private:
    template <bool ADD>
    static void both(const bf16* a, long steps, const bf16* left, float* out, int stride) {
        const bf16* right = left + steps * TILE_SIZE;
        begin_sums<ADD, true>(out, stride);
        for (long step = 0; step < steps; ++step, a += PANEL_STEP, left += TILE_SIZE, right += TILE_SIZE) {
            // After the last step of these two columns of tiles comes the first of the next two.
            const long turn = step + EARLY < steps ? 0 : steps * TILE_SIZE;
            _tile_loadd(4, a, 64);
            _tile_loadd(5, a + TILE_SIZE, 64);
            _tile_loadd(6, left, 64);
            _tile_loadd(7, right, 64);
            _tile_dpbf16ps(0, 4, 6);
            fetch(a + EARLY * PANEL_STEP, 16);
            _tile_dpbf16ps(1, 4, 7);
            fetch(a + EARLY * PANEL_STEP + TILE_SIZE, 16);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            fetch(left + EARLY * TILE_SIZE + turn, 16);
            fetch(right + EARLY * TILE_SIZE + turn, 16);
        }
        end_sums<true>(out, stride);
    }

    template <bool ADD>
    static void one(const bf16* a, long steps, const bf16* b, float* out, int stride) {
        begin_sums<ADD, false>(out, stride);
        for (long step = 0; step < steps; ++step, a += PANEL_STEP, b += TILE_SIZE) {
            _tile_loadd(4, a, 64);
            _tile_loadd(5, a + TILE_SIZE, 64);
            _tile_loadd(6, b, 64);
            _tile_dpbf16ps(0, 4, 6);
            fetch(a + EARLY * PANEL_STEP, 32);
            _tile_dpbf16ps(2, 5, 6);
            fetch(b + EARLY * TILE_SIZE, 16);
        }
        end_sums<false>(out, stride);
    }
};

template <>
struct PanelProducts<AVX512> {
    template <bool ADD, class Number>
    void multiply(const Number* a, int rows, int k, const Number* b, int tiles, float* out, int stride) const {
        using Those = Strips<Number>;
        for (int row = 0; row < rows; row += PANEL)
            Those::template multiply<ADD>(a + (long)row * k, Those::STEP, PANEL * Those::STEP, PANEL, k, b, tiles,
                                          out + (long)row * stride, stride);
    }
};

}  // namespace samovar
