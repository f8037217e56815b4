// COCO's run-length encoding of a rectangle of a mask: runs down the columns of the whole picture, background first,
// written as pycocotools writes them.

#include <vector>

#include "numbers.h"

namespace {

constexpr int STRIP = 64;

// Where the value changes on the way down the columns, in order, as positions in the whole picture. A change that is
// undone at once, from a column's last pixel to the next one's first, is none.
void find_changes(const uint8_t* region, int rows, int columns, long stride, int top, int left, int full_height,
                  std::vector<long>& changes) {
    std::vector<int> found[STRIP];
    changes.clear();
    for (int first = 0; first < columns; first += STRIP) {
        const int count = std::min(STRIP, columns - first);
        const __mmask64 those = count == STRIP ? ~0ull : (1ull << count) - 1;
        uint64_t above = 0;
        for (int row = 0; row <= rows; ++row) {
            uint64_t here = 0;
            if (row < rows) {
                const __m512i bytes = _mm512_maskz_loadu_epi8(those, region + row * stride + first);
                here = _mm512_test_epi8_mask(bytes, bytes);
            }
            for (uint64_t changed = here ^ above; changed; changed &= changed - 1)
                found[__builtin_ctzll(changed)].push_back(row);
            above = here;
        }
        for (int column = 0; column < count; ++column) {
            const long start = (long)(left + first + column) * full_height + top;
            for (const int row : found[column]) {
                if (!changes.empty() && changes.back() == start + row)
                    changes.pop_back();
                else
                    changes.push_back(start + row);
            }
            found[column].clear();
        }
    }
}

// Five bits a character, least significant first, 32 for more, 48 added; the sign is the last one's top bit.
inline char* write(long value, char* out) {
    while (true) {
        const long bits = value & 31;
        value >>= 5;
        const bool more = bits & 16 ? value != -1 : value != 0;
        *out++ = (char)(bits + (more ? 32 : 0) + 48);
        if (!more) return out;
    }
}

}  // namespace

extern "C" {

// Writes the characters of a rectangle, rows x columns bytes of 0 or 1, `stride` apart, that lies at (top, left) in a
// picture. Returns how many they are; if that is more than `room`, nothing is written.
long samovar_runs(const uint8_t* region, int rows, int columns, long stride, int top, int left, int full_height,
                  int full_width, char* characters, long room) {
    constexpr int LONGEST = 8;
    thread_local std::vector<long> changes;
    thread_local std::vector<char> written;
    find_changes(region, rows, columns, stride, top, left, full_height, changes);
    const long total = (long)full_height * full_width;
    // A mask that ends with the object has no background after it.
    if (changes.empty() || changes.back() != total) changes.push_back(total);
    written.resize(changes.size() * LONGEST);
    char* out = written.data();
    long before = 0, counts[3] = {};
    for (size_t i = 0; i < changes.size(); ++i) {
        const long count = changes[i] - before;
        before = changes[i];
        // From the fourth on, as the difference from the one two before.
        out = write(i > 2 ? count - counts[1] : count, out);
        counts[1] = counts[0];
        counts[0] = count;
    }
    const long length = out - written.data();
    if (length <= room) std::memcpy(characters, written.data(), length);
    return length;
}
}
