// The tokens' side of SAM's mask decoder in float32: what happens to the few tokens of prompts between two walks over the
// image, and at last for the masks. The arithmetic is that of token_attention.py.
//
// Matrices are row-major. Rows are prompts x tokens. What belongs to heads is heads x rows x channels. Weights, inputs x
// outputs, are cut into strips of 32 outputs, which lie one after another: so they are read from beginning to end. With a
// few rows it is reading them that takes the time. Those of the layers' perceptrons, more than half of all, are therefore
// bfloat16: of each 16 outputs two inputs share a register, the second in the upper halves.

#include "sides.h"

namespace {

using namespace samovar;

constexpr int INNER = 128;            // channels of the attention between tokens and image, all heads
constexpr int INNER_HEAD = 16;        // of one head
constexpr int SELF_HEAD = 32;         // of one head among tokens
constexpr int WIDE = 2048;            // of the perceptron between
constexpr int ROWS_AT_ONCE = 8;
constexpr int STRIP = 32;
constexpr int HALF_STRIP = 16;
constexpr float NORM_EPSILON = 1e-5f;

// The weights of two inputs.
template <int WIDTH>
struct Two {
    __m512 even[WIDTH], odd[WIDTH];

    explicit Two(const float* weight) {
        for (int j = 0; j < WIDTH; ++j) {
            even[j] = _mm512_loadu_ps(weight + 16 * j);
            odd[j] = _mm512_loadu_ps(weight + 16 * (WIDTH + j));
        }
    }

    explicit Two(const bf16* weight) {
        const __m512i upper = _mm512_set1_epi32(0xffff0000);
        for (int j = 0; j < WIDTH; ++j) {
            const __m512i both = _mm512_loadu_si512(weight + 32 * j);
            even[j] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            odd[j] = _mm512_castsi512_ps(_mm512_and_si512(both, upper));
        }
    }
};

template <int ROWS, int WIDTH, class Number>
void strip(const float* x, int stride_x, int k, const Number* weight, const float* bias, float* out, int stride) {
    __m512 sum[ROWS][WIDTH];
    for (int j = 0; j < WIDTH; ++j) {
        const __m512 begin = bias ? _mm512_loadu_ps(bias + 16 * j) : _mm512_setzero_ps();
        for (int i = 0; i < ROWS; ++i) sum[i][j] = begin;
    }
    for (int at = 0; at < k; at += 2, weight += 32 * WIDTH) {
        const Two<WIDTH> two(weight);
        for (int i = 0; i < ROWS; ++i) {
            const __m512 even = _mm512_set1_ps(x[i * stride_x + at]), odd = _mm512_set1_ps(x[i * stride_x + at + 1]);
            for (int j = 0; j < WIDTH; ++j)
                sum[i][j] = _mm512_fmadd_ps(odd, two.odd[j], _mm512_fmadd_ps(even, two.even[j], sum[i][j]));
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < WIDTH; ++j) _mm512_storeu_ps(out + i * stride + 16 * j, sum[i][j]);
}

template <int WIDTH, class Number>
void strips(int rows, const float* x, int stride_x, int k, const Number* weight, const float* bias, float* out,
            int stride) {
    for (; rows >= ROWS_AT_ONCE; rows -= ROWS_AT_ONCE, x += ROWS_AT_ONCE * stride_x, out += ROWS_AT_ONCE * stride)
        strip<ROWS_AT_ONCE, WIDTH>(x, stride_x, k, weight, bias, out, stride);
    switch (rows) {
        case 7: return strip<7, WIDTH>(x, stride_x, k, weight, bias, out, stride);
        case 6: return strip<6, WIDTH>(x, stride_x, k, weight, bias, out, stride);
        case 5: return strip<5, WIDTH>(x, stride_x, k, weight, bias, out, stride);
        case 4: return strip<4, WIDTH>(x, stride_x, k, weight, bias, out, stride);
        case 3: return strip<3, WIDTH>(x, stride_x, k, weight, bias, out, stride);
        case 2: return strip<2, WIDTH>(x, stride_x, k, weight, bias, out, stride);
        case 1: return strip<1, WIDTH>(x, stride_x, k, weight, bias, out, stride);
        default: return;
    }
}

// out (rows x columns) = x (rows x k) . weight (k x columns) + bias; columns are strips, or half of one.
template <class Number>
void multiply(const float* x, int stride_x, int rows, int k, const Number* weight, const float* bias, int columns,
              float* out, int stride) {
    if (columns < STRIP) return strips<1>(rows, x, stride_x, k, weight, bias, out, stride);
    for (int column = 0; column < columns; column += STRIP)
        strips<2>(rows, x, stride_x, k, weight + (long)column * k, bias ? bias + column : nullptr, out + column, stride);
}

template <class Number>
void apply(const Linear<Number>& linear, const float* x, int stride_x, int rows, int inputs, int outputs, float* out) {
    multiply(x, stride_x, rows, inputs, linear.weight, linear.bias, outputs, out, outputs);
}

template <class Number>
void apply(const Linear<Number>& linear, const float* x, int rows, int inputs, int outputs, float* out) {
    apply(linear, x, inputs, rows, inputs, outputs, out);
}

// Each head's part of `x` (rows x heads * inner) times its own matrix: to heads x rows x channels.
void apply_by_head(const float* x, int rows, const float* matrices, const float* bias, float* out) {
    for (int head = 0; head < HEADS; ++head)
        multiply(x + head * INNER_HEAD, INNER, rows, INNER_HEAD, matrices + head * INNER_HEAD * CHANNELS, bias, CHANNELS,
                 out + (long)head * rows * CHANNELS, CHANNELS);
}

void add(float* to, const float* what, const float* more, int size) {
    for (int i = 0; i < size; i += 16)
        _mm512_storeu_ps(to + i, _mm512_add_ps(_mm512_loadu_ps(what + i), _mm512_loadu_ps(more + i)));
}

void apply(const Norm& norm, float* x, int rows) {
    for (int row = 0; row < rows; ++row, x += CHANNELS) {
        __m512 value[16];
        for (int i = 0; i < 16; ++i) value[i] = _mm512_loadu_ps(x + 16 * i);
        normalise<CHANNELS>(value, NORM_EPSILON);
        for (int i = 0; i < 16; ++i)
            _mm512_storeu_ps(x + 16 * i, _mm512_fmadd_ps(value[i], _mm512_loadu_ps(norm.weight + 16 * i),
                                                         _mm512_loadu_ps(norm.bias + 16 * i)));
    }
}

// Buffers for the rows of one call.
struct Room {
    float* at;

    float* take(long size) {
        float* taken = at;
        at += size;
        return taken;
    }
};

// Attention among the tokens of each prompt: out = its result, rows x channels.
void attend_to_self(const Layer& layer, const float* tokens, const float* positioned, int prompts, int count,
                    Room room, float* out) {
    const int rows = prompts * count;
    float* query = room.take((long)rows * CHANNELS);
    float* key = room.take((long)rows * CHANNELS);
    float* value = room.take((long)rows * CHANNELS);
    float* found = room.take((long)rows * CHANNELS);
    apply(layer.self_query, positioned, rows, CHANNELS, CHANNELS, query);
    apply(layer.self_key, positioned, rows, CHANNELS, CHANNELS, key);
    apply(layer.self_value, tokens, rows, CHANNELS, CHANNELS, value);
    const float scale = 1 / std::sqrt((float)SELF_HEAD);
    for (int row = 0; row < rows; ++row) {
        const int first = row / count * count;
        for (int head = 0; head < HEADS; ++head) {
            const int at = head * SELF_HEAD;
            const __m512 q0 = _mm512_loadu_ps(query + row * CHANNELS + at);
            const __m512 q1 = _mm512_loadu_ps(query + row * CHANNELS + at + 16);
            float score[MAX_TOKENS], high = -std::numeric_limits<float>::infinity(), sum = 0;
            for (int other = 0; other < count; ++other) {
                const float* k = key + (first + other) * CHANNELS + at;
                const __m512 product = _mm512_fmadd_ps(q0, _mm512_loadu_ps(k), _mm512_mul_ps(q1, _mm512_loadu_ps(k + 16)));
                score[other] = scale * _mm512_reduce_add_ps(product);
                high = std::max(high, score[other]);
            }
            __m512 v0 = _mm512_setzero_ps(), v1 = _mm512_setzero_ps();
            for (int other = 0; other < count; ++other) {
                const float share = std::exp(score[other] - high);
                const float* v = value + (first + other) * CHANNELS + at;
                sum += share;
                v0 = _mm512_fmadd_ps(_mm512_set1_ps(share), _mm512_loadu_ps(v), v0);
                v1 = _mm512_fmadd_ps(_mm512_set1_ps(share), _mm512_loadu_ps(v + 16), v1);
            }
            const __m512 factor = _mm512_set1_ps(1 / sum);
            _mm512_storeu_ps(found + row * CHANNELS + at, _mm512_mul_ps(v0, factor));
            _mm512_storeu_ps(found + row * CHANNELS + at + 16, _mm512_mul_ps(v1, factor));
        }
    }
    apply(layer.self_out, found, rows, CHANNELS, CHANNELS, out);
}

// What the tokens look for in the image: heads x rows x channels.
void ask(const TokenToImage& attention, const float* positioned, int rows, Room room, float* query) {
    float* projected = room.take((long)rows * INNER);
    apply(attention.query, positioned, rows, CHANNELS, INNER, projected);
    apply_by_head(projected, rows, attention.absorbed_key, nullptr, query);
}

// Adds to the tokens what they found in the parts of the image.
void take_in(const TokenToImage& attention, const Exchange& exchange, Room room) {
    const int rows = exchange.rows(), parts = exchange.parts;
    const float *means = exchange.means, *logsumexp = exchange.logsumexp;
    float* joined = room.take((long)rows * CHANNELS);
    float* values = room.take((long)rows * INNER);
    float* out = room.take((long)rows * CHANNELS);
    for (int head = 0; head < HEADS; ++head) {
        for (int row = 0; row < rows; ++row) {
            float high = -std::numeric_limits<float>::infinity(), sum = 0;
            for (int part = 0; part < parts; ++part)
                high = std::max(high, logsumexp[((long)part * HEADS + head) * rows + row]);
            float* to = joined + (long)row * CHANNELS;
            std::fill(to, to + CHANNELS, 0.0f);
            for (int part = 0; part < parts; ++part) {
                const long at = ((long)part * HEADS + head) * rows + row;
                const float share = std::exp(logsumexp[at] - high);
                sum += share;
                for (int i = 0; i < CHANNELS; i += 16)
                    _mm512_storeu_ps(to + i, _mm512_fmadd_ps(_mm512_set1_ps(share),
                                                             _mm512_loadu_ps(means + at * CHANNELS + i),
                                                             _mm512_loadu_ps(to + i)));
            }
            const __m512 factor = _mm512_set1_ps(1 / sum);
            for (int i = 0; i < CHANNELS; i += 16)
                _mm512_storeu_ps(to + i, _mm512_mul_ps(factor, _mm512_loadu_ps(to + i)));
        }
        multiply(joined, CHANNELS, rows, CHANNELS, attention.absorbed_value + (long)head * CHANNELS * INNER_HEAD,
                 attention.value_bias + head * INNER_HEAD, INNER_HEAD, values + head * INNER_HEAD, INNER);
    }
    apply(attention.out, values, rows, INNER, CHANNELS, out);
    add(exchange.tokens, exchange.tokens, out, rows * CHANNELS);
}

void rectify(float* x, long size) {
    for (long i = 0; i < size; i += 16)
        _mm512_storeu_ps(x + i, _mm512_max_ps(_mm512_loadu_ps(x + i), _mm512_setzero_ps()));
}

void perceive(const Layer& layer, int rows, Room room, float* tokens) {
    float* wide = room.take((long)rows * WIDE);
    float* out = room.take((long)rows * CHANNELS);
    apply(layer.widen, tokens, rows, CHANNELS, WIDE, wide);
    rectify(wide, (long)rows * WIDE);
    apply(layer.narrow, wide, rows, WIDE, CHANNELS, out);
    add(tokens, tokens, out, rows * CHANNELS);
}

// What the image finds at the tokens.
void show(const ImageToToken& attention, const float* tokens, const float* positioned, int rows, Room room,
          float* vectors, float* offsets, float* values) {
    float* key = room.take((long)rows * INNER);
    float* value = room.take((long)rows * INNER);
    apply(attention.key, positioned, rows, CHANNELS, INNER, key);
    apply(attention.value, tokens, rows, CHANNELS, INNER, value);
    apply_by_head(key, rows, attention.absorbed_query, nullptr, vectors);
    apply_by_head(value, rows, attention.absorbed_out, attention.out_bias, values);
    for (int head = 0; head < HEADS; ++head)
        for (int row = 0; row < rows; ++row) {
            const int at = head * INNER_HEAD;
            offsets[head * rows + row] = _mm512_reduce_add_ps(
                _mm512_mul_ps(_mm512_loadu_ps(key + row * INNER + at), _mm512_loadu_ps(attention.query_bias + at)));
        }
}

// One of the model's heads, on rows `stride_x` apart.
void apply(const Mlp& mlp, const float* x, int stride_x, int rows, int outputs, Room room, float* out) {
    float* first = room.take((long)rows * CHANNELS);
    float* second = room.take((long)rows * CHANNELS);
    apply(mlp.layers[0], x, stride_x, rows, CHANNELS, CHANNELS, first);
    rectify(first, (long)rows * CHANNELS);
    apply(mlp.layers[1], first, rows, CHANNELS, CHANNELS, second);
    rectify(second, (long)rows * CHANNELS);
    apply(mlp.layers[2], second, rows, CHANNELS, outputs, out);
}

}  // namespace

namespace samovar {

long room_for(int rows) { return (long)rows * (WIDE + 6 * CHANNELS); }

void begin_tokens(const Weights& weights, const Exchange& exchange) {
    const Layer& layer = weights.layers[0];
    const int rows = exchange.rows();
    const float* position = exchange.position;
    Room room{exchange.room};
    float* positioned = room.take((long)rows * CHANNELS);
    attend_to_self(layer, position, position, exchange.prompts, exchange.count, room, exchange.tokens);
    apply(layer.first, exchange.tokens, rows);
    add(positioned, exchange.tokens, position, rows * CHANNELS);
    ask(layer.to_image, positioned, rows, room, exchange.query);
}

void next_tokens(const Weights& weights, int number, const Exchange& exchange) {
    const Layer& layer = weights.layers[number];
    const int rows = exchange.rows();
    float* tokens = exchange.tokens;
    Room room{exchange.room};
    float* positioned = room.take((long)rows * CHANNELS);
    take_in(layer.to_image, exchange, room);
    apply(layer.second, tokens, rows);
    perceive(layer, rows, room, tokens);
    apply(layer.third, tokens, rows);
    add(positioned, tokens, exchange.position, rows * CHANNELS);
    show(layer.to_tokens, tokens, positioned, rows, room, exchange.vectors, exchange.offsets, exchange.values);
    if (number == 0) {
        const Layer& following = weights.layers[1];
        float* attended = room.take((long)rows * CHANNELS);
        attend_to_self(following, tokens, positioned, exchange.prompts, exchange.count, room, attended);
        add(tokens, tokens, attended, rows * CHANNELS);
        apply(following.first, tokens, rows);
        add(positioned, tokens, exchange.position, rows * CHANNELS);
        ask(following.to_image, positioned, rows, room, exchange.query);
    } else {
        ask(weights.last, positioned, rows, room, exchange.query);
    }
}

void end_tokens(const Weights& weights, const Exchange& exchange, Choice choice, float* vectors, float* ious) {
    Room room{exchange.room};
    take_in(weights.last, exchange, room);
    apply(weights.last_norm, exchange.tokens, exchange.rows());
    // A prompt's tokens begin with that of the IoU predictions and those of the masks.
    const int stride = exchange.count * CHANNELS, masks = masks_of(choice);
    float* predicted = room.take((long)exchange.prompts * HALF_STRIP);
    apply(weights.iou_head, exchange.tokens, stride, exchange.prompts, HALF_STRIP, room, predicted);
    for (int prompt = 0; prompt < exchange.prompts; ++prompt, predicted += HALF_STRIP) {
        const int best = (int)(std::max_element(predicted + 1, predicted + MASKS) - predicted);
        const int first = choice == BEST_OF_THREE ? best : choice == SINGLE ? 0 : 1;
        for (int mask = first; mask < first + masks; ++mask, vectors += LAST) {
            const float* token = exchange.tokens + (long)prompt * stride + (1 + mask) * CHANNELS;
            apply(weights.hypernetworks[mask], token, CHANNELS, 1, LAST, room, vectors);
            *ious++ = predicted[mask];
        }
    }
}

}  // namespace samovar
