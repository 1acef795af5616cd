package txn

import "untorn/txn/spare"

// brief is a Sys whose descriptors are given back by the call that opens them: publishing, salvaging, looking. When the
// process has none left it uses those that package spare keeps for that.
type brief struct{ Sys }

func (s brief) Open(dir int, name string, flags int, mode uint32) (int, error) {
	return spare.Brief(func() (int, error) { return s.Sys.Open(dir, name, flags, mode) })
}

func (s brief) Reopen(fd int, flags int) (int, error) {
	return spare.Brief(func() (int, error) { return s.Sys.Reopen(fd, flags) })
}

func (s brief) OpenBeneath(dir int, path string, flags int) (int, error) {
	return spare.Brief(func() (int, error) { return s.Sys.OpenBeneath(dir, path, flags) })
}

func (s brief) Close(fd int) error { return spare.Close(fd, s.Sys.Close) }

// lasting is a Sys whose descriptors are kept: those of open files and known directories. It leaves the reserve alone.
type lasting struct{ Sys }

func (s lasting) Open(dir int, name string, flags int, mode uint32) (int, error) {
	return spare.Lasting(func() (int, error) { return s.Sys.Open(dir, name, flags, mode) })
}

func (s lasting) Reopen(fd int, flags int) (int, error) {
	return spare.Lasting(func() (int, error) { return s.Sys.Reopen(fd, flags) })
}

func (s lasting) OpenBeneath(dir int, path string, flags int) (int, error) {
	return spare.Lasting(func() (int, error) { return s.Sys.OpenBeneath(dir, path, flags) })
}

func (s lasting) Close(fd int) error { return spare.Close(fd, s.Sys.Close) }
