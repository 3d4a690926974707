package kafka

import "github.com/twmb/franz-go/pkg/kgo"

// Joined says whether a client is a member of its group, with partitions or, where there are
// more members than partitions, without.
func Joined(client *kgo.Client) bool {
	if client == nil {
		return false
	}
	member, generation := client.GroupMetadata()
	return member != "" && generation >= 0
}

// Joined says whether every subscription is a member of its group.
func (s *Subscriber) Joined() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, client := range s.members {
		if !Joined(client) {
			return false
		}
	}
	return len(s.members) > 0 && !s.closed
}
