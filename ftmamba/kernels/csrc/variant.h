/* The whole kernel for the instruction set that the including file has set. */
#include "gelu.h"
#include "layer_backward.h"
#include "normalize.h"
#include "plain_scan.h"
#include "softmax_tiles.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

const Variant JOIN(variant_, VARIANT) = {
    TEXT(VARIANT), layer_forward, layer_backward, plain_scan_forward, plain_scan_backward, dropout,
    gelu, normalize, exponentials, SOFTMAX,
};
