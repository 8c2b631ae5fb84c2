#!/usr/bin/env bash
# Finds words that this project no longer uses, in code and documents: names that were replaced by clearer ones, and
# phrases that are not plain English. Prints file:line, the word, its replacement and the line; fails if it finds any.
# usage: check-words.sh [PATH...]     of the repository; all of it by default
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- .

found=0

# check FILES WORD REPLACEMENT [EXCEPT]: WORD is an extended regular expression that matches whole words, in files whose
# name or place matches FILES; a line that matches EXCEPT is right.
check() {
    local files=$1 word=$2 replacement=$3 except=${4:-^$} hits place text match
    # git grep ends with 1 where it finds nothing.
    hits=$(git grep --untracked -nIwE -e "$word" -- "${paths[@]}" || [ $? -eq 1 ])
    while IFS= read -r hit; do
        place=$(printf '%s' "$hit" | cut -d: -f1-2)
        text=$(printf '%s' "$hit" | cut -d: -f3-)
        [[ ${place%:*} =~ $files ]] || continue
        [[ $text =~ $except ]] && continue
        match=$(printf '%s' "$text" | grep -owE -e "$word" | head -n 1)
        printf '%s: "%s", write "%s": %s\n' "$place" "$match" "$replacement" "$(printf '%s' "$text" | cut -c 1-120)"
        found=$((found + 1))
    done < <(printf '%s' "${hits:+$hits$'\n'}")
}

# CONTRIBUTING.md names the words to say that they are not used.
paths=("$@" ':(exclude)CONTRIBUTING.md' ':(exclude)scripts/check-words.sh')

rust='\.rs$'
text='\.(rs|md|sh|toml)$'

# Names of code. A type is declared by one of these words; the same word in a sentence is English.
check "$rust" '(struct|enum|trait|type|impl) Condition|Condition::[A-Z][A-Za-z]*' TableDamage
check "$rust" '(struct|enum|trait|type|impl) Moment|Moment::[A-Z][A-Za-z]*' AsOf
check "$rust" '(struct|enum|trait|type|impl) Announcement|Announcement::[A-Za-z]*' IncomingStore
check '^protocol/' 'mod discover' 'mod openrpc'
check "$rust" 'mod km|(commands|cli|super)::km' legacy

# English.
check "$text" 'anew' 'again, or rebuild, reopen, reread'
check "$text" 'the dear(est)? (part|parts|step|steps|work)' 'the expensive ...'
# "There is no file" is right; "this is no file" is not.
check "$text" 'is no (JSON|UTF-8|number|object|file|directory|repository|key|time|item|request|error)' 'is not a ...' \
    '(^|[^a-z])([Tt]here|[Ww]here|if|nor) is no '

if [ "$found" -gt 0 ]; then
    printf 'check-words: %d to mend; CONTRIBUTING.md says why\n' "$found" >&2
    exit 1
fi
echo 'check-words: ok'
