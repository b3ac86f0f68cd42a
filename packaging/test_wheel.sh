#!/usr/bin/env bash
# Installs a wheel into environments and runs the tests against what is installed, outside of the checkout. Ends with a
# table in Markdown, as docs/install.md has it, and with an error where a test failed.
#
#   bash packaging/test_wheel.sh WHEEL                      (as `make test-wheel` does)
#   ENVIRONMENTS="/path/to/python ..." bash packaging/test_wheel.sh WHEEL
#
# Without ENVIRONMENTS one is made, and kept in build/wheel-environments, for each Python of PYTHONS that is there and
# each torch of TORCHES: several gigabytes each. NO_DEPS=1 installs the wheel alone, into environments that have all else
# that they are to have: tests of what they lack are skipped. TESTS chooses the tests, PROCESSES how many at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=$(realpath "$1")
sources=$(ls "$PWD"/dist/apem_fast-*.tar.gz)
kept=$PWD/build/wheel-environments
read -ra tests <<< "${TESTS:-}"
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT

environments=(${ENVIRONMENTS:-})
if [ ${#environments[@]} = 0 ]; then
  for version in ${PYTHONS:-3.11 3.12 3.13 3.13t}; do
    command -v "python$version" > /dev/null || { echo "no python$version here: left out"; continue; }
    for torch in ${TORCHES:-2.11.0 2.14.1 newest}; do
      environment=$kept/py$version-torch$torch
      if [ ! -x "$environment/bin/python" ]; then
        "python$version" -m venv "$environment"
        "$environment/bin/python" -m pip --quiet install "torch$([ "$torch" = newest ] || echo "==$torch")" ||
          { echo "python$version has no torch $torch: left out"; rm -rf "$environment"; continue; }
      fi
      environments+=("$environment/bin/python")
    done
  done
fi

# The tests and what they look at, without the package's own folder.
tar -xzf "$sources" -C "$work" --strip-components 1
rm -rf "$work/apem_fast"
failed=0
table=$'| | tests |\n|---|---|'
for python in "${environments[@]}"; do
  version=$("$python" -c 'import sys, torch; print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")')
  echo "== $version"
  # What else is installed must not bring another torch, as torchvision would.
  "$python" -c 'import torch; print("torch==" + torch.__version__.split("+")[0])' > "$work/torch.txt"
  what=("$wheel[all,test]" --constraint "$work/torch.txt") && [ -z "${NO_DEPS:-}" ] || what=("$wheel" --no-deps)
  "$python" -m pip --quiet install --force-reinstall --no-deps "$wheel" > "$work/install.log" 2>&1 &&
    "$python" -m pip --quiet install "${what[@]}" >> "$work/install.log" 2>&1 || { cat "$work/install.log"; exit 1; }
  export OMP_NUM_THREADS=1 PYTHONPATH=
  (cd "$work" && "$python" - "$work" << 'PYTHON'
import sys
import apem_fast
assert not apem_fast.__file__.startswith(sys.argv[1]), f"{apem_fast.__file__} is not what was installed"
print(apem_fast.__file__, apem_fast.backend())
PYTHON
  )
  (cd "$work" && "$python" -m pytest -q -m "not slow" -p no:cacheprovider ${PROCESSES:+-n "$PROCESSES"} \
    "${tests[@]/#/python_tests/}" 2>&1) | tee "$work/tests.log" || failed=1
  table+=$'\n'"| $version | $(tail -n 1 "$work/tests.log" | sed -E 's/ in [0-9.:]+s.*//; s/^=+ //') |"
done
echo "$table"
exit $failed
