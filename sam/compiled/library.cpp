// What every library of compiled code has.

#include "sam/compiled/products.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

using namespace samovar;

extern "C" {

// The digest of the sources that this was compiled from.
const char* samovar_sources() { return SAMOVAR_SOURCES; }

// Prepares the process. Returns 0 if it may use the tiles of AMX, and otherwise something else.
int samovar_begin() {
    gelu.fill();
#if defined(__linux__)
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    return (int)syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA);
#else
    return 1;
#endif
}

// Packs a right operand, k x columns.
void samovar_pack(const float* matrix, int k, int columns, uint16_t* packed) {
    pack_matrix([=](int row) { return matrix + (long)row * columns; }, k, columns, packed);
}
}
