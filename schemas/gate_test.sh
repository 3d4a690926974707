#!/bin/sh
# Tests the gate in breaking.sh: a copy of the schema is changed in one place, and must be
# refused, or accepted. No committed file is touched.
#
#	sh schemas/gate_test.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
sh "$here/../internal/native/install.sh"
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
failed=0 cases=0

# changed WANTED NAME SED-SCRIPT [WORDS]: WANTED is refused or accepted. WORDS must be in
# what buf says, so that a schema that is merely no schema does not count as refused.
changed() {
	wanted=$1 name=$2 script=$3 words=${4:-}
	cases=$((cases + 1))
	copy=$temporary/$cases
	mkdir "$copy"
	cp -R "$here/buf.yaml" "$here/released" "$here/pixtools" "$copy"
	proto=pixtools/events/v1/events.proto
	sed "$script" "$here/$proto" >"$copy/$proto"
	said=$temporary/said
	got=accepted
	sh "$here/breaking.sh" "$copy" >"$said" 2>&1 || got=refused
	if [ "$wanted" != "same" ] && cmp -s "$here/$proto" "$copy/$proto"; then
		got="unchanged: this test's sed script fits the schema no more"
	fi
	[ "$wanted" != same ] || wanted=accepted
	if [ "$got" != "$wanted" ] || { [ -n "$words" ] && ! grep -q "$words" "$said"; }; then
		echo "schemas/gate_test.sh: $name: $got, not $wanted${words:+ with \"$words\"}" >&2
		cat "$said" >&2
		failed=1
	fi
}

changed same 'the schema as it is' ''
changed refused 'a field is removed' '/^  Totals totals = 3;$/d' 'Previously present field "3"'
changed refused 'a field is removed and its number reserved' 's/^  Totals totals = 3;$/  reserved 3;/' 'Previously present field "3"'
changed refused 'the type of a field is changed' 's/^  Outcome outcome = 2;$/  string outcome = 2;/' 'changed type from "enum" to "string"'
changed refused 'a number is changed to a wider one' 's/^  int32 completed = 1;$/  int64 completed = 1;/' 'changed type from "int32" to "int64"'
changed refused 'a field is renamed' 's/^  Totals totals = 3;$/  Totals sums = 3;/' 'changed name from "totals" to "sums"'
changed refused 'a message is renamed' 's/^message JobDeleted {$/message JobErased {/' 'Previously present message "JobDeleted"'
changed refused 'a number is used again' 's/^  Totals totals = 3;$/  string note = 3;/' '"note"'
changed refused 'a field has another number' 's/^  Totals totals = 3;$/  Totals totals = 30;/' 'Previously present field "3"'
changed refused 'a field becomes repeated' 's/^  Outcome outcome = 2;$/  repeated Outcome outcome = 2;/' 'changed cardinality'
changed refused 'a value of an enum is removed' '/^  OUTCOME_CANCELLED = 4;$/d' 'Previously present enum value "4"'
changed accepted 'a field is added' 's/^  Totals totals = 3;$/&\n  string note = 1000;/'
changed accepted 'a message is added' 's/^message JobDeleted {$/message JobPrinted {}\n&/'
changed accepted 'a value of an enum is added' 's/^  OUTCOME_CANCELLED = 4;$/&\n  OUTCOME_UNHEARD_OF = 1000;/'
changed accepted 'a comment is changed' 's/^\/\/ JobDeleted: .*$/\/\/ JobDeleted: gone./'

[ "$failed" = 1 ] || echo "schemas: the gate decided $cases changes as it must"
exit $failed
