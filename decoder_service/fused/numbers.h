// Shapes that both sides of the fused decoder share.

#pragma once

#include "sam/compiled/numbers.h"

namespace samovar {

constexpr int CHANNELS = 256;
constexpr int HEADS = 8;
constexpr int MAX_TOKENS = 32;

}  // namespace samovar
