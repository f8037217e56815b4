// The two sides of the fused decoder, as decode.cpp puts them together.

#pragma once

#include "numbers.h"

namespace samovar {

// ---------------------------------------------------------------------------------------------------------------------
// The weights, in the order in which weights.py lists their addresses.

template <class Number>
struct Linear {
    const Number* weight;  // of the tokens' side in strips, of the image's side packed
    const float* bias;     // null: none
};

struct Norm {
    const float* weight;
    const float* bias;
};

struct TokenToImage {
    Linear<float> query;
    const float* absorbed_key;    // heads x INNER_HEAD x channels, scaled
    const float* absorbed_value;  // heads x channels x INNER_HEAD
    const float* value_bias;      // heads x INNER_HEAD
    Linear<float> out;
};

struct ImageToToken {
    Linear<float> key, value;
    const float* absorbed_query;  // heads x INNER_HEAD x channels, scaled
    const float* query_bias;      // heads x INNER_HEAD, scaled
    const float* absorbed_out;    // heads x INNER_HEAD x channels
    const float* out_bias;        // channels, an eighth of it
};

struct Layer {
    Linear<float> self_query, self_key, self_value, self_out;
    Norm first;
    TokenToImage to_image;
    Norm second;
    Linear<bf16> widen, narrow;
    Norm third;
    ImageToToken to_tokens;
    Norm image_norm;
};

struct Mlp {
    Linear<float> layers[3];
};

struct Upscaling {
    Linear<bf16> first;  // channels x (4 x MIDDLE)
    Norm norm;
    Linear<bf16> second;  // MIDDLE x (4 x LAST)
};

struct Weights {
    Layer layers[2];
    TokenToImage last;
    Norm last_norm;
    Mlp iou_head;  // of 16 outputs, of which there are MASKS
    Mlp hypernetworks[MASKS];
    const bf16* position;  // POSITIONS x channels
    Upscaling upscaling;
};

// ---------------------------------------------------------------------------------------------------------------------
// What passes between the sides, for the tokens of some prompts; rows are prompts x tokens

struct Exchange {
    int prompts, count;  // and the tokens of each
    const float* position;  // rows x channels: the tokens' position encoding, which they also begin as
    float* tokens;          // rows x channels
    float* query;           // heads x rows x channels: what the tokens look for in the image
    float* vectors;         // heads x rows x channels: what the image scores the tokens with
    float* offsets;         // heads x rows: added to the scores
    float* values;          // heads x rows x channels: what the image finds
    int parts;              // of the image
    float* means;           // parts x heads x rows x channels: what the tokens found in each part,
    float* logsumexp;       // parts x heads x rows: and the logarithms of the softmax's sums there
    float* room;            // for the tokens' side, as much as `room_for` says

    int rows() const { return prompts * count; }
};

// ---------------------------------------------------------------------------------------------------------------------
// The tokens' side

// The floats of room that the functions below need for so many rows.
long room_for(int rows);

// Writes what the tokens are after their attention among themselves, and what they look for in the image.
void begin_tokens(const Weights& weights, const Exchange& exchange);

// Goes on, after the tokens of a layer have looked into the image: writes what the image finds at them, and what the
// next layer, or the last attention, looks for.
void next_tokens(const Weights& weights, int layer, const Exchange& exchange);

// Ends, after the last look into the image. Writes, for each prompt, the IoU predictions of the masks that `choice` asks
// for, and the vectors, of LAST channels, by which the image is multiplied for their logits.
void end_tokens(const Weights& weights, const Exchange& exchange, Choice choice, float* vectors, float* ious);

// ---------------------------------------------------------------------------------------------------------------------
// The image's side: one part of one prompt's image, `positions` from `first` on, a multiple of BLOCK

struct Part {
    int prompt, number, first, positions;
};

// Lets the tokens look into the part.
void look(int isa, const Weights& weights, const bf16* image, const Part& part, const Exchange& exchange);

// Lets the part look at the tokens, writes what comes of it, and lets the tokens look into that.
void update_and_look(int isa, const Weights& weights, int layer, const bf16* image, const Part& part,
                     const Exchange& exchange, bf16* updated);

// Upscales the part and multiplies it with the vectors of up to four masks; `logits` are masks x LOGITS x LOGITS.
void upscale(int isa, const Weights& weights, const bf16* image, const Part& part, const float* vectors, int masks,
             float* logits);

}  // namespace samovar
