// A call of the fused decoder, from the tokens of some prompts to their logits. Called from mask_decoder.py, which says
// what is computed. In one go, since what calls it computes other clicks in other threads of one Python interpreter, for
// which threads would wait each time that they came back to it.

#include <sched.h>

#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "sides.h"

namespace {

using namespace samovar;

// Threads that share the pieces of a call: whoever is free begins the next one. Nobody waits for a thread that has begun
// none, so helpers may come late or never. All zeros at first, when there is nothing to do yet.
struct Crew {
    std::atomic<uint64_t> next;  // how many pieces there are, in the upper half, and the next that nobody has begun
    std::atomic<int> done;
    std::atomic<int> over;
    void (*work)(const void* context, int piece);
    const void* context;

    // Begins a piece and ends it, if there is one.
    bool take() {
        const auto piece_of = [](uint64_t of) { return (uint32_t)of < (uint32_t)(of >> 32) ? (int)(uint32_t)of : -1; };
        if (piece_of(next.load(std::memory_order_acquire)) < 0) return false;
        const int piece = piece_of(next.fetch_add(1, std::memory_order_acq_rel));
        if (piece < 0) return false;
        work(context, piece);
        done.fetch_add(1, std::memory_order_release);
        return true;
    }

    // Does all pieces, with whoever helps.
    template <class Work>
    void share(int pieces, const Work& each) {
        context = &each;
        work = [](const void* work, int piece) { (*static_cast<const Work*>(work))(piece); };
        done.store(0, std::memory_order_relaxed);
        next.store((uint64_t)pieces << 32, std::memory_order_release);
        while (take()) {
        }
        while (done.load(std::memory_order_acquire) < pieces) rest();
    }

    // A meeting is some ten microseconds off, and a thread that sleeps takes longer to wake. Others get the core first.
    static void rest() {
        for (int i = 0; i < 32; ++i) _mm_pause();
        sched_yield();
    }
};

// Room of the calling thread, for its next call as well: a click takes some 3 MiB, which the system would clear each time.
float* room_of_thread(long floats) {
    struct Free {
        void operator()(float* room) const { ::operator delete[](room, std::align_val_t(64)); }
    };
    thread_local std::unique_ptr<float, Free> room;
    thread_local long size = 0;
    if (floats > size) {
        room.reset();
        room.reset(static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t(64))));
        size = floats;
    }
    return room.get();
}

// Hands out arrays, one after another, each on a cache line of its own. Without a beginning it counts.
struct Shelf {
    float* begin;
    long taken = 0;

    float* take(long floats) {
        float* at = begin ? begin + taken : nullptr;
        taken += (floats + 15) / 16 * 16;
        return at;
    }
};

constexpr float NOTHING = -1000.0f;  // a logit

struct Arrays {
    Exchange exchange;
    float* vectors;
    float* own;  // bfloat16: prompts x positions x channels

    Arrays(Shelf& shelf, const float* position, int prompts, int count, int parts) {
        const long rows = (long)prompts * count, by_head = HEADS * rows;
        exchange.prompts = prompts, exchange.count = count, exchange.parts = parts;
        exchange.position = position;
        exchange.tokens = shelf.take(rows * CHANNELS);
        exchange.query = shelf.take(by_head * CHANNELS);
        exchange.vectors = shelf.take(by_head * CHANNELS);
        exchange.offsets = shelf.take(by_head);
        exchange.values = shelf.take(by_head * CHANNELS);
        exchange.means = shelf.take(parts * by_head * CHANNELS);
        exchange.logsumexp = shelf.take(parts * by_head);
        exchange.room = shelf.take(room_for(prompts * count));
        vectors = shelf.take((long)prompts * MASKS * LAST);
        own = shelf.take((long)prompts * POSITIONS * CHANNELS / 2);
    }
};

}  // namespace

extern "C" {

// Decodes prompts of `count` tokens each: `position` is prompts x count x channels, and images[i] the image of the ith,
// bfloat16 positions x channels, which is cut into `parts`, each of whole rows. Writes logits, prompts x masks x 256 x 256,
// and IoU predictions, prompts x masks; no logits of a prompt that has no prediction above `above`, and of the others the
// first `rows`, to the next multiple of four, below which they are NOTHING. `crew` is `samovar_crew_size()` zero bytes.
void samovar_decode(const void* weights, int isa, const uint16_t* const* images, const float* position, int prompts,
                    int count, int choice, float above, int rows, int parts, float* logits, float* ious, void* crew_room) {
    const Weights& all = *static_cast<const Weights*>(weights);
    Crew& crew = *static_cast<Crew*>(crew_room);
    Shelf counting{nullptr};
    Arrays(counting, position, prompts, count, parts);
    Shelf shelf{room_of_thread(counting.taken)};
    const Arrays arrays(shelf, position, prompts, count, parts);
    const Exchange& exchange = arrays.exchange;
    const auto own = [&](int prompt) { return reinterpret_cast<bf16*>(arrays.own) + (long)prompt * POSITIONS * CHANNELS; };
    const auto part_of = [&](int piece, int lines = SIDE_POSITIONS) {
        const int number = piece % parts;
        const int first = lines * number / parts, end = lines * (number + 1) / parts;
        return Part{piece / parts, number, first * SIDE_POSITIONS, (end - first) * SIDE_POSITIONS};
    };
    const int pieces = prompts * parts, masks = masks_of((Choice)choice);

    begin_tokens(all, exchange);
    crew.share(pieces, [&](int piece) {
        const Part part = part_of(piece);
        look(isa, all, images[part.prompt], part, exchange);
    });
    for (int layer = 0; layer < 2; ++layer) {
        // What the next layer asks of the image is known by then: one walk over it serves both.
        next_tokens(all, layer, exchange);
        crew.share(pieces, [&](int piece) {
            const Part part = part_of(piece);
            const bf16* image = layer == 0 ? images[part.prompt] : own(part.prompt);
            update_and_look(isa, all, layer, image, part, exchange, own(part.prompt));
        });
    }
    end_tokens(all, exchange, (Choice)choice, arrays.vectors, ious);
    // Of many points on nothing in particular most have no mask that is good enough.
    std::vector<int> wanted;
    for (int prompt = 0; prompt < prompts; ++prompt)
        if (std::any_of(ious + prompt * masks, ious + (prompt + 1) * masks, [=](float iou) { return !(iou <= above); }))
            wanted.push_back(prompt);
    constexpr int ROWS = LOGITS / SIDE_POSITIONS;  // of logits for each of the image
    const int lines = std::min((rows + ROWS - 1) / ROWS, SIDE_POSITIONS);
    for (int prompt : wanted)
        for (int mask = prompt * masks; mask < (prompt + 1) * masks; ++mask)
            std::fill(logits + ((long)mask * LOGITS + lines * ROWS) * LOGITS, logits + (mask + 1L) * LOGITS * LOGITS, NOTHING);
    crew.share((int)wanted.size() * parts, [&](int piece) {
        const Part part = part_of(wanted[piece / parts] * parts + piece % parts, lines);
        upscale(isa, all, own(part.prompt), part, arrays.vectors + (long)part.prompt * masks * LAST, masks,
                logits + (long)part.prompt * masks * LOGITS * LOGITS);
    });
    crew.over.store(1, std::memory_order_release);
}

// Helps with a call until it is over.
void samovar_help(void* crew_room) {
    Crew& crew = *static_cast<Crew*>(crew_room);
    while (!crew.over.load(std::memory_order_acquire))
        if (!crew.take()) Crew::rest();
}

long samovar_crew_size() { return sizeof(Crew); }
}
