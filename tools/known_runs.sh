#!/usr/bin/env bash
# Trains every run of the known channel that docs/known.md rests on, and measures them: 39 runs of about 12 minutes of
# one processor core each, two at a time.
#
#     bash tools/known_runs.sh CORPUS LADDER RUNS
#
# LADDER holds the rungs base-0, base-1 and base-2 of tools/ladder.toml. A run that is there is not trained again.
set -euo pipefail
corpus=$1 ladder=$2 runs=$3
generators="stylegan1 sd2.1 stylegan2"
specs=() jobs=()

add() { # NAME BASE SEED SET...: a run that leaves these sets out
    jobs+=("$runs/$1 --start $ladder/base-$2 --seed $3 --leave-out ${*:4}")
}

for generator in $generators; do
    for base in 0 1 2; do
        name=$generator-$base
        for seed in 0 10 20; do add "$name-$seed" "$base" $((base + seed)) "$generator"; done
        specs+=("$generator=$runs/$name-0,$runs/$name-10,$runs/$name-20")
    done
done
for photographs in celeba-hq ffhq; do
    for seed in 0 10 20; do add "$photographs-$seed" 0 "$seed" "$photographs"; done
    specs+=("$photographs=$runs/$photographs-0,$runs/$photographs-10,$runs/$photographs-20")
    for generator in $generators; do
        add "$photographs+$generator" 0 0 "$photographs" "$generator"
        specs+=("$photographs+$generator=$runs/$photographs+$generator")
    done
done

export OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456
for job in "${jobs[@]}"; do
    [ -e "${job%% *}/known.xml" ] || echo "$job"
done | xargs -r -P 2 -L 1 python tools/known.py train --corpus "$corpus" --out
python tools/known.py measure --corpus "$corpus" --runs "${specs[@]}"
