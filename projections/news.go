package projections

import (
	"fmt"
	"strconv"
	"strings"
)

// channel carries news at each commit of the projector.
const channel = "pixtools_projection"

// maxNewsBytes is what Postgres takes as one notification, less one.
const maxNewsBytes = 7999

// news is what a commit of the projector brought.
type news struct {
	// moves are the offsets that it reached, by partition.
	moves map[int32]int64
	// ended are the ids of jobs that are no longer open.
	ended []string
	// anew says that there is another read model in the place of the one before: what was
	// told of that says nothing of this one.
	anew bool
}

const anewWord = "anew"

// encode writes words, partition:offset pairs and job ids, into as few notifications as
// they fit in.
func (n news) encode() []string {
	var payloads []string
	var b strings.Builder
	add := func(word string) {
		if b.Len()+1+len(word) > maxNewsBytes {
			payloads = append(payloads, b.String())
			b.Reset()
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(word)
	}
	if n.anew {
		add(anewWord)
	}
	for partition, next := range n.moves {
		add(fmt.Sprintf("%d:%d", partition, next))
	}
	for _, id := range n.ended {
		add(id)
	}
	if b.Len() > 0 {
		payloads = append(payloads, b.String())
	}
	return payloads
}

func decodeNews(payload string) (news, error) {
	n := news{moves: map[int32]int64{}}
	for _, word := range strings.Fields(payload) {
		if word == anewWord {
			n.anew = true
			continue
		}
		p, o, isMove := strings.Cut(word, ":")
		if !isMove {
			n.ended = append(n.ended, word)
			continue
		}
		partition, err := strconv.ParseInt(p, 10, 32)
		if err != nil {
			return news{}, fmt.Errorf("notification %q: %w", payload, err)
		}
		if n.moves[int32(partition)], err = strconv.ParseInt(o, 10, 64); err != nil {
			return news{}, fmt.Errorf("notification %q: %w", payload, err)
		}
	}
	return n, nil
}
