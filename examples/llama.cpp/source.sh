# fetch_source FOLDER: llama.cpp's source as it is in the PyPI package llama-cpp-python, whose sum is checked, unless it is
# there. packages.sh comes before.
fetch_source() {
  [ ! -f "$1/include/llama.h" ] || return 0
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
  package=llama_cpp_python-0.3.36
  sum=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
  folder=$(dirname "$1")
  mkdir -p "$folder"
  python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$folder" \
    llama-cpp-python==0.3.36
  echo "$sum  $folder/$package.tar.gz" | sha256sum --check --quiet
  rm -rf "$1" "$1.part"
  mkdir "$1.part"
  tar -xzf "$folder/$package.tar.gz" -C "$1.part" --strip-components=3 "$package/vendor/llama.cpp"
  rm "$folder/$package.tar.gz"
  mv "$1.part" "$1"
}
