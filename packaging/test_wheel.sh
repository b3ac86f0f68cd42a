#!/usr/bin/env bash
# Installs a wheel into environments and runs the tests against what is installed, outside of the checkout.
#
#   bash packaging/test_wheel.sh WHEEL                      (as `make test-wheel` does)
#   ENVIRONMENTS="/path/to/python ..." bash packaging/test_wheel.sh WHEEL
#
# Without ENVIRONMENTS one is made, and kept in build/wheel-environments, for each Python of PYTHONS that is there and
# each torch of TORCHES: several gigabytes each. TESTS chooses the tests.
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
for python in "${environments[@]}"; do
  echo "== $("$python" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)')"
  "$python" -m pip --quiet install --upgrade "$wheel[all,test]" > "$work/install.log" 2>&1 || { cat "$work/install.log"; exit 1; }
  (cd "$work" && OMP_NUM_THREADS=1 PYTHONPATH= "$python" -c 'import apem_fast; print(apem_fast.__file__, apem_fast.backend())')
  (cd "$work" && OMP_NUM_THREADS=1 PYTHONPATH= "$(dirname "$python")/pytest" -q -m "not slow" -p no:cacheprovider \
    "${tests[@]/#/python_tests/}")
done
