// Shapes that both sides of the fused decoder share.

#pragma once

#include "sam/compiled/numbers.h"

namespace samovar {

constexpr int CHANNELS = 256;
constexpr int HEADS = 8;
constexpr int MAX_TOKENS = 32;
constexpr int SIDE_POSITIONS = 64;  // of the image
constexpr int POSITIONS = SIDE_POSITIONS * SIDE_POSITIONS;
constexpr int BLOCK = SIDE_POSITIONS;  // positions that are worked on at a time
constexpr int LOGITS = 256;            // rows and columns of a mask
constexpr int MASKS = 4;
constexpr int LAST = 32;  // channels of the image after upscaling, and of a mask's vector

// Which masks answer a prompt; mask_decoder.py says so by number.
enum Choice { BEST_OF_THREE = 0, SINGLE = 1, THREE = 2 };

constexpr int masks_of(Choice choice) { return choice == THREE ? 3 : 1; }

}  // namespace samovar
