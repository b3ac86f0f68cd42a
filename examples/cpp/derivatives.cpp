// A direction from a relevance map and a gradient, images moved along it, and the derivative of a loss on them.

#include <apem_fast/operators.h>

#include <cstdio>
#include <exception>

int main() {
  torch::manual_seed(0);
  const auto images = torch::randn({2, 3, 8, 8}, torch::kDouble);
  const auto gradient = torch::randn({2, 3, 8, 8}, torch::kDouble);
  const auto relevance = torch::rand({2, 1, 8, 8}, torch::kDouble).requires_grad_();
  const auto epsilon = torch::tensor({1.0, 2.0}, torch::kDouble);

  const auto loss = [&](const torch::Tensor& map) {
    const auto direction = apem_fast::directed_relevance(map, gradient);
    return apem_fast::perturb(images, direction, epsilon, -1.0, 1.0).pow(2).sum();
  };
  loss(relevance).backward();

  // The same derivative from two values of the loss.
  torch::NoGradGuard without_gradients;
  const auto step = 1e-6 * torch::randn_like(relevance);
  const double measured = (loss(relevance + step) - loss(relevance - step)).item<double>() / 2;
  const double computed = (relevance.grad() * step).sum().item<double>();
  std::printf("computed %.10g, measured %.10g\n", computed, measured);
  if (!(std::abs(computed - measured) < 1e-6 * std::abs(measured) + 1e-12)) {
    return 1;
  }

  // What has no derivative says so.
  try {
    torch::AutoGradMode with_gradients(true);
    apem_fast::relevance_map(images.clone().requires_grad_());
  } catch (const std::exception& error) {
    std::printf("refused: %s\n", error.what());
    return 0;
  }
  return 2;
}
