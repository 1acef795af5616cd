package main

import (
	"fmt"

	"untorn/txn"
)

type recoverCmd struct {
	Backing string `arg:"" help:"The backing directory."`
	JSON    bool   `name:"json" help:"Print what was done as an object, for scripts."`
}

// Help is what --help says beyond the flags.
func (recoverCmd) Help() string {
	return `After a crash of the daemon or of the machine, what was staged waits in .untorn. Recovery moves it to salvage, and
leaves alone what a living daemon stages. It may be interrupted and repeated.`
}

func (c *recoverCmd) Run() error {
	dir, err := openBacking(c.Backing)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := checkOwner(dir); err != nil {
		return err
	}
	report, err := txn.Recover(txn.Linux{}, int(dir.Fd()))
	// What was done before an error is told all the same.
	if perr := c.print(report); perr != nil {
		return perr
	}
	if err != nil {
		return advise(fmt.Errorf("recovering %s: %w", c.Backing, err), c.Backing)
	}
	return nil
}

// recovered is the stable form of a report for scripts.
type recovered struct {
	Salvaged int          `json:"salvaged"`
	Dropped  int          `json:"dropped"`
	Bytes    int64        `json:"bytes"`
	Entries  []txn.Record `json:"entries"`
	Problems []string     `json:"problems"`
}

func (c *recoverCmd) print(r txn.Report) error {
	if c.JSON {
		// Empty arrays, not null.
		return printJSON(recovered{r.Salvaged, r.Dropped, r.Bytes, append([]txn.Record{}, r.Entries...), append([]string{}, r.Problems...)})
	}
	for _, p := range r.Problems {
		notice("left as it is: %s", p)
	}
	if r.Salvaged == 0 && r.Dropped == 0 {
		fmt.Println("Nothing was recovered.")
		return nil
	}
	fmt.Printf("Salvaged %s (%s), and dropped %d that held nothing new.\n", count(r.Salvaged, "file", "files"), showSize(r.Bytes), r.Dropped)
	if r.Salvaged > 0 {
		fmt.Printf("See them with: untorn salvage list %s\n", c.Backing)
	}
	return nil
}
