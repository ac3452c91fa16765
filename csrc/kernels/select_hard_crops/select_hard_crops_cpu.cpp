// Takes a vector of images at a time. The largest n of L terms are those whose rank is below n.
// Ranks take L^2 / 2 comparisons without a branch, which is faster than sorting for few locals.
#include "kernels/select_hard_crops/select_hard_crops.h"

#include <algorithm>
#include <cstdint>

#include "kernels/common/isa.h"
#include "kernels/common/vector_loops_cpu.h"
#include "kernels/hard_pairs/hardest_pair_cpu.h"

namespace mast_ext::kernels {
namespace MAST_EXT_ISA {
namespace {

template <typename T>
struct Images {
  using A = accum_t<T>;
  using Number = lane_number<A>;

  const SelectHardCrops& p;
  std::int64_t first, count;  // at most as many images as a vector has lanes

  vec<A> ce(std::int64_t teacher, std::int64_t student) const {
    return load_some(static_cast<const T*>(p.ce) + p.at(teacher, student) + first, count);
  }

  // What a crop adds to the score of a tuple with (a, c).
  vec<A> term(std::int64_t a, std::int64_t c, std::int64_t crop) const {
    return ce(a, crop) + ce(c, crop);
  }

  void write(const HardestLanes<A>& hardest) const {
    store_some(static_cast<A*>(p.score) + first, hardest.score, count);
  }

  std::int64_t& index(std::int64_t row, std::int64_t lane) const {
    return p.index[row * p.batch + first + lane];
  }
};

// ranks[l] = the number of terms that are larger than term l, or equal with a lower l.
template <typename A>
void rank_terms(const A* terms, std::int64_t locals, lane_number<A>* ranks) {
  using Number = lane_number<A>;
  constexpr std::int64_t kLane = kLanes<A>;
  for (std::int64_t l = 0; l < locals; ++l) {
    const vec<A> term = load(terms + l * kLane);
    vec<Number> rank{};
    for (std::int64_t before = 0; before < l; ++before) {
      const vec<Number> overtakes = harder_lanes<A>(term, load(terms + before * kLane));  // 0 or -1
      rank += overtakes + 1;
      Number* other = ranks + before * kLane;
      store(other, load(other) - overtakes);
    }
    store(ranks + l * kLane, rank);
  }
}

template <typename T>
void select_from_all(const Images<T>& images) {
  using A = accum_t<T>;
  using Number = lane_number<A>;
  constexpr std::int64_t kLane = kLanes<A>;
  const SelectHardCrops& p = images.p;
  A* terms = scratch<A, struct Terms>(p.locals * kLane);
  Number* ranks = scratch<Number, struct Ranks>(p.locals * kLane);
  Number* chosen = scratch<Number, struct Chosen>(p.locals * kLane);  // all bits set, or none
  HardestLanes<A> hardest;
  for (std::int64_t pair = 0; pair < p.count; ++pair) {
    const std::int64_t a = p.even(pair), c = p.odd(pair);
    for (std::int64_t l = 0; l < p.locals; ++l) {
      store(terms + l * kLane, images.term(a, c, p.globals + l));
    }
    rank_terms<A>(terms, p.locals, ranks);
    vec<A> score = images.ce(a, c) + images.ce(c, a);
    const auto among_first = [&](std::int64_t l) -> vec<Number> {
      return load(ranks + l * kLane) < broadcast(static_cast<Number>(p.num_locals));
    };
    for (std::int64_t l = 0; l < p.locals; ++l) {
      score = among_first(l) ? score + load(terms + l * kLane) : score;
    }
    const vec<Number> wins = hardest.offer(static_cast<Number>(pair), score);
    for (std::int64_t l = 0; l < p.locals; ++l) {
      Number* flags = chosen + l * kLane;
      store(flags, wins ? among_first(l) : load(flags));
    }
  }
  images.write(hardest);
  for (std::int64_t lane = 0; lane < images.count; ++lane) {
    images.index(0, lane) = p.even(hardest.number[lane]);
    images.index(1, lane) = p.odd(hardest.number[lane]);
    std::int64_t row = 2;
    for (std::int64_t l = 0; l < p.locals; ++l) {
      if (chosen[l * kLane + lane] != 0) images.index(row++, lane) = p.globals + l;
    }
  }
}

template <typename T>
void select_from_tuples(const Images<T>& images) {
  using A = accum_t<T>;
  const SelectHardCrops& p = images.p;
  const std::int64_t width = 2 + p.num_locals;
  HardestLanes<A> hardest;
  for (std::int64_t i = 0; i < p.count; ++i) {
    const std::int64_t* tuple = p.tuples + i * width;
    vec<A> score = images.ce(tuple[0], tuple[1]) + images.ce(tuple[1], tuple[0]);
    for (std::int64_t row = 2; row < width; ++row) {
      score += images.term(tuple[0], tuple[1], tuple[row]);
    }
    hardest.offer(static_cast<lane_number<A>>(i), score);
  }
  images.write(hardest);
  for (std::int64_t lane = 0; lane < images.count; ++lane) {
    const std::int64_t* tuple = p.tuples + hardest.number[lane] * width;
    for (std::int64_t row = 0; row < width; ++row) images.index(row, lane) = tuple[row];
  }
}

}  // namespace

void select_hard_crops_cpu(const SelectHardCrops& p, std::int64_t begin, std::int64_t end) {
  visit_dtype(p.dtype, [&]<typename T>() {
    constexpr std::int64_t kLane = kLanes<accum_t<T>>;
    for (std::int64_t b = begin; b < end; b += kLane) {
      const Images<T> images{p, b, std::min(kLane, end - b)};
      p.tuples == nullptr ? select_from_all(images) : select_from_tuples(images);
    }
  });
}

}  // namespace MAST_EXT_ISA

MAST_EXT_CPU_ENTRY(select_hard_crops_cpu,
                   (const SelectHardCrops& p, std::int64_t begin, std::int64_t end),
                   (p, begin, end))

}  // namespace mast_ext::kernels
