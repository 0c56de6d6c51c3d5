// Small complex Fourier transforms, one signal in each lane.
#pragma once

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {

struct Complex {
  F32 re, im;
};

AFNEXT_INLINE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
AFNEXT_INLINE Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
// a + s b and a - s b for a real s
AFNEXT_INLINE Complex fma(float s, Complex b, Complex a) {
  return {fma(broadcast(s), b.re, a.re), fma(broadcast(s), b.im, a.im)};
}
AFNEXT_INLINE Complex operator*(float s, Complex a) { return {a.re * s, a.im * s}; }
// a (c + i s)
AFNEXT_INLINE Complex turn(Complex a, float c, float s) {
  return {a.re * c - a.im * s, a.im * c + a.re * s};
}
AFNEXT_INLINE Complex times_minus_i(Complex a) { return {a.im, -a.re}; }

// Complex numbers lie in memory as kLanes real parts, then kLanes imaginary ones.
AFNEXT_INLINE Complex load_complex(const float* p, int64_t i) {
  return {load(p + 2 * kLanes * i), load(p + 2 * kLanes * i + kLanes)};
}
AFNEXT_INLINE void store_complex(float* p, int64_t i, Complex a) {
  store(p + 2 * kLanes * i, a.re);
  store(p + 2 * kLanes * i + kLanes, a.im);
}

AFNEXT_INLINE void dft4(Complex& a, Complex& b, Complex& c, Complex& d) {
  const Complex p = a + c, q = a - c, r = b + d, s = times_minus_i(b - d);
  a = p + r, c = p - r;
  b = q + s, d = q - s;
}

AFNEXT_INLINE void dft5(Complex& a, Complex& b, Complex& c, Complex& d, Complex& e) {
  constexpr float cos1 = 0.309016994f, cos2 = -0.809016994f;  // of 2 pi / 5 and 4 pi / 5
  constexpr float sin1 = 0.951056516f, sin2 = 0.587785252f;
  const Complex p = b + e, m = b - e, q = c + d, n = c - d;
  const Complex even1 = fma(cos1, p, fma(cos2, q, a)), even2 = fma(cos2, p, fma(cos1, q, a));
  const Complex odd1 = times_minus_i(fma(sin1, m, sin2 * n));
  const Complex odd2 = times_minus_i(fma(-sin1, n, sin2 * m));
  a = a + p + q;
  b = even1 + odd1, e = even1 - odd1;
  c = even2 + odd2, d = even2 - odd2;
}

AFNEXT_INLINE void dft8(Complex (&x)[8]) {
  constexpr float root_half = 0.707106781f;
  dft4(x[0], x[2], x[4], x[6]);
  dft4(x[1], x[3], x[5], x[7]);
  // Odd outputs turn by -45, -90 and -135 degrees.
  const Complex b1 = root_half * Complex{x[3].re + x[3].im, x[3].im - x[3].re};
  const Complex b2 = times_minus_i(x[5]);
  const Complex b3 = root_half * Complex{x[7].im - x[7].re, -x[7].re - x[7].im};
  const Complex a0 = x[0], a1 = x[2], a2 = x[4], a3 = x[6], b0 = x[1];
  x[0] = a0 + b0, x[4] = a0 - b0;
  x[1] = a1 + b1, x[5] = a1 - b1;
  x[2] = a2 + b2, x[6] = a2 - b2;
  x[3] = a3 + b3, x[7] = a3 - b3;
}

}  // namespace afnext::cpu::AFNEXT_ISA
