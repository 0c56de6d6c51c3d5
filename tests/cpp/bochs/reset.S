# The end of a ROM of 4 MiB: from a processor's reset to 64-bit mode with every vector and tile register
# on. Then the ROM is copied to 2 MiB, and the program at its beginning runs there.
  .code16
  .globl reset
reset:
  cli
  movb $2, %al                    # address line 20
  outb %al, $0x92
  lgdtl %cs:gdt_pointer - reset
  movl $0x11, %eax                # protection
  movl %eax, %cr0
  ljmpl $8, $wide
  .code32
wide:
  movw $16, %ax
  movw %ax, %ds
  movl $0x2003, 0x1000            # one table of four pages of 1 GiB: addresses are what they are
  movl $0x00000083, 0x2000
  movl $0x40000083, 0x2008
  movl $0x80000083, 0x2010
  movl $0xc0000083, 0x2018
  movl $0x1000, %eax
  movl %eax, %cr3
  movl $0x40620, %eax             # OSXSAVE, OSXMMEXCPT, OSFXSR, PAE
  movl %eax, %cr4
  movl $0xc0000080, %ecx          # EFER: long mode
  rdmsr
  orl $0x100, %eax
  wrmsr
  movl $0x80000033, %eax          # paging, NE, ET, MP, PE
  movl %eax, %cr0
  ljmpl $24, $long_mode
  .code64
long_mode:
  xorl %ecx, %ecx
  xorl %edx, %edx
  movl $0x600e7, %eax             # x87, SSE, AVX, AVX-512 and tiles
  xsetbv
  movl $0xffc00000, %esi
  movl $0x200000, %edi
  movl $0x3f0000 / 8, %ecx
  rep movsq
  movl $0x1ffff8, %esp            # as after a call
  movl $0x200000, %eax
  jmp *%rax

  .balign 8
gdt:
  .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
gdt_pointer:
  .word . - gdt - 1
  .long gdt

  .section .vector, "ax"
  .code16
  jmp reset
