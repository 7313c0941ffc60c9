// Weights of a linear as the CPU kernels read them, and activations as integers.
//
// Outputs lie in panels of 64. Inputs lie in chunks that never cross a group of the weights or of the
// activations. Within a chunk of a panel, 4-bit codes stand for eight inputs at a time as 64 lanes of
// four bytes: lane n, byte i holds input i in its low and input i + 4 in its high nibble. 8-bit codes
// are 64 lanes of four inputs. Codes are stored with an offset (8 or 128) that makes them unsigned,
// because dot products of the machine take one unsigned and one signed operand; an accumulator starts
// at minus the offset times the sum of the activations, which takes it off again, exactly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "aligned.h"

namespace dqx {

constexpr int PANEL = 64;   // outputs that lie together
constexpr int STEP = 8;     // inputs to which chunks are padded
constexpr int ROW_BLOCK = 96;  // rows that one task computes: their sums stay in the first caches

// A run of inputs that share their scales.
struct Chunk {
  int32_t first, length;  // inputs of the weight
  int32_t start, padded;  // place among the padded inputs
  int32_t group;          // row of the scales
  int32_t activation_group;
};

// What a node says about its arithmetic.
struct Form {
  int64_t inputs = 0, outputs = 0;
  int64_t group = 0;             // inputs that share a weight scale
  int64_t activation_group = 0;  // inputs that share an activation scale; divides `inputs`
  int weight_bits = 4;           // 4 or 8
  int activation_bits = 8;       // 4, 8 or 16
  float step = 0.0f;             // times the largest activation: the scale
  bool channel = false;          // one scale an output, and integers are summed over all inputs
  bool two_levels = false;       // with that, codes are multiplied by integer steps, one a group
  bool gated = false;            // panels of 32 gate and 32 up outputs; silu(gate) * up comes out
};

// Where the tensors of one weight (inputs, outputs) lie, in ONNX layout.
struct Source {
  const void* codes = nullptr;     // INT4 (two a byte, low nibble first) or int8
  const float* scales = nullptr;   // (groups, outputs), or (outputs,) in channels
  const int8_t* steps = nullptr;   // (groups, outputs) on two levels
  const float* bias = nullptr;     // (outputs,)
};

struct Weights {
  Form form;
  std::vector<Chunk> chunks;
  int64_t padded = 0;        // inputs with the padding of all chunks
  int64_t panels = 0;
  int64_t panel_bytes = 0;   // of codes
  std::vector<int64_t> chunk_bytes;  // where each chunk starts in a panel
  Aligned<uint8_t> codes;    // [panel][chunk][inputs / 8 or / 4][64][4]
  Aligned<float> scales;     // [panel][chunk][64]; empty where sums are integers
  Aligned<int32_t> steps;    // [panel][chunk][64] where sums are integers; 1 on one level
  Aligned<float> channel;    // [panel][64] scale a column, where sums are kept as integers
  Aligned<float> bias;       // [panel][64], or empty

  bool integer_sums() const { return !steps.empty(); }
  int columns() const { return form.gated ? PANEL / 2 : PANEL; }  // outputs a panel yields
  size_t bytes() const;
};

// Packs one weight, or the gate and up weights of a gated pair.
Weights pack(const Form& form, const Source& first, const Source* second);

// Activations (rows, inputs) as integers, padded as the weights' chunks are.
struct Activations {
  int64_t rows = 0, padded = 0, chunks = 0, groups = 0;
  int planes = 1;                 // 2: codes of 16 bits as a high and a low signed byte
  const int8_t* codes = nullptr;  // [plane][rows][padded]
  const int32_t* sums = nullptr;  // [plane][rows][chunks]
  const float* scales = nullptr;  // [rows][groups]
};

}  // namespace dqx
