package events

// foldNoted takes in what this version alone knows: see TestNextVersion.
func foldNoted(s *Job, m *JobNoted) *Job {
	if s.GetNoted() == m.GetText() {
		return nil
	}
	next := copyOf(s)
	next.Noted = m.GetText()
	return next
}
