// Small complex Fourier transforms in a thread's registers.
#pragma once

#include "cuda/arch/platform.h"

namespace afnext::cuda {

struct alignas(8) Complex {
  float re, im;
};

AFNEXT_DEVICE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
AFNEXT_DEVICE Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
AFNEXT_DEVICE Complex operator*(float s, Complex a) { return {s * a.re, s * a.im}; }
AFNEXT_DEVICE Complex times_minus_i(Complex a) { return {a.im, -a.re}; }
// a (c + i s)
AFNEXT_DEVICE Complex turn(Complex a, float c, float s) {
  return {a.re * c - a.im * s, a.im * c + a.re * s};
}

// 16 additions.
AFNEXT_DEVICE void dft4(Complex& a, Complex& b, Complex& c, Complex& d) {
  const Complex p = a + c, q = a - c, r = b + d, s = times_minus_i(b - d);
  a = p + r, c = p - r;
  b = q + s, d = q - s;
}

// 36 instructions: 20 additions, 4 products, 12 fused multiply-adds.
AFNEXT_DEVICE void dft5(Complex& a, Complex& b, Complex& c, Complex& d, Complex& e) {
  constexpr float cos1 = 0.309016994f, cos2 = -0.809016994f;  // of 2 pi / 5 and 4 pi / 5
  constexpr float sin1 = 0.951056516f, sin2 = 0.587785252f;
  const Complex p = b + e, m = b - e, q = c + d, n = c - d;
  const Complex even1 = a + cos2 * q + cos1 * p, even2 = a + cos1 * q + cos2 * p;
  const Complex odd1 = times_minus_i(sin2 * n + sin1 * m);
  const Complex odd2 = times_minus_i(sin2 * m - sin1 * n);
  a = a + p + q;
  b = even1 + odd1, e = even1 - odd1;
  c = even2 + odd2, d = even2 - odd2;
}

// 20 = 4 x 5 by the prime factors (Good, 1958): input 5 a + 4 b and output 5 k + 16 l, modulo 20,
// part into transforms of 4 and 5 with no twiddle factors between. 224 instructions. Output k is
// left in x[dft20_slot(k)].
AFNEXT_DEVICE constexpr int dft20_slot(int k) { return (5 * (k % 4) + 4 * (k % 5)) % 20; }
AFNEXT_DEVICE void dft20(Complex (&x)[20]) {
#pragma unroll
  for (int b = 0; b < 5; ++b) {
    dft4(x[4 * b], x[(4 * b + 5) % 20], x[(4 * b + 10) % 20], x[(4 * b + 15) % 20]);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    dft5(x[5 * k], x[(5 * k + 4) % 20], x[(5 * k + 8) % 20], x[(5 * k + 12) % 20],
         x[(5 * k + 16) % 20]);
  }
}

}  // namespace afnext::cuda
